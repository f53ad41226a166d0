"""Captions that leave out given factors of a scene, and hold words that nothing in the image corresponds to.

They make it known what a pair's image and caption share. A factor that is left out is in the image only. A kind of
words is in the caption only: its phrases are drawn without looking at the scene. The other factors are in both. Two
kinds of words are factors themselves, `style` and `background`. All scenes are then drawn with the same value of it,
and the caption names one at random, so such a caption is false. The other kinds, such as days, are words that the
reference model has never seen: they hardly move its text vectors, and suit models that were trained on real captions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from headspan.errors import SettingsError
from headspan.world.captions import CHANCES, FACTORS, Chances, caption
from headspan.world.factors import BACKGROUNDS, STYLES, Scene
from headspan.world.stream import Stream

# Phrases that a caption may end with, by kind.
PHRASES: dict[str, tuple[str, ...]] = {
    "day": tuple(f"on {day}" for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")),
    "mood": ("in a happy mood", "in a sad mood", "in a calm mood", "in an angry mood", "in a thoughtful mood"),
    "author": tuple(f"by {name}" for name in ("Anna", "Peter", "Maria", "John", "Sofia", "James", "Lucia", "Omar")),
}
# Factors that can be words: the values that captions name, and the value that all scenes then have.
_DRAWN: dict[str, tuple[tuple[str, ...], str]] = {"style": (STYLES, "flat"), "background": (BACKGROUNDS, "plain")}
WORDS = (*_DRAWN, *PHRASES)
# Without its number and its article, a noun still says whether there is one object or several.
LEFT_OUT = tuple(factor for factor in FACTORS if factor != "count")
# The share of captions that hold a kind of words.
_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Telling:
    """Which factors captions leave out, and which kinds of words they hold.

    Every other factor is named wherever the scene has a single value of it; scenes of different objects name as much
    as ordinary captions do. Raises SettingsError for names that are not in LEFT_OUT and WORDS, and for a factor that is
    in both.
    """

    without: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self.without, LEFT_OUT, "captions cannot leave out {}; choose from {}")
        _check(self.words, WORDS, "there are no words of the kind {}; choose from {}")
        if both := sorted({*self.without} & {*self.words}):
            raise SettingsError(
                f"captions cannot both leave out {both[0]} and name it at random; give it to one of the two"
            )

    @property
    def plain(self) -> bool:
        """Whether captions are the ordinary ones."""
        return not self.without and not self.words

    def drawn(self, scene: Scene) -> Scene:
        """The scene to draw: factors that are words have the same value in all scenes."""
        held: dict[str, Any] = {factor: _DRAWN[factor][1] for factor in self.words if factor in _DRAWN}
        return replace(scene, **held)

    def caption(self, scene: Scene, random: Stream, for_words: Stream) -> tuple[str, dict[str, str | None]]:
        """A caption, and what it says of each kind of words: a value or phrase; None where it holds none.

        The words are drawn from a stream of their own, so that nothing else of the caption depends on them.
        """
        said = {kind: self._word(kind, for_words) for kind in self.words}
        told: dict[str, Any] = {kind: value for kind, value in said.items() if kind in _DRAWN and value}
        silent = {kind for kind, value in said.items() if kind in _DRAWN and value is None}
        text = caption(replace(scene, **told), random, _chances({*self.without, *silent}, scene.repeated))
        return " ".join([text, *(said[kind] or "" for kind in PHRASES if said.get(kind))]), said

    def _word(self, kind: str, random: Stream) -> str | None:
        named, phrase = random.chance(_SHARE), random.choice(_DRAWN[kind][0] if kind in _DRAWN else PHRASES[kind])
        return phrase if named else None


def _check(names: tuple[str, ...], known: Collection[str], sentence: str) -> None:
    for name in names:
        if name not in known:
            raise SettingsError(sentence.format(repr(name), ", ".join(known)))


def _chances(silent: Collection[str], repeated: bool) -> Chances:
    """The chance of each factor: 0 if it is left out, else 1, or the ordinary one in scenes of different objects."""
    things = ("shape", "colour", "texture", "size", "position")
    by_name = {factor: getattr(CHANCES, factor) if not repeated else 1.0 for factor in things}
    by_name |= {"style": 1.0, "ground_colour": 1.0, "ground_kind": 1.0, "ground": 1.0}
    fields = {"background": "ground_kind", "background_colour": "ground_colour"}
    by_name |= {fields.get(factor, factor): 0.0 for factor in silent}
    if {"background", "background_colour"} <= {*silent}:
        by_name["ground"] = 0.0
    return Chances(**by_name)
