"""Captions of scenes, and prompts for zero-shot classification of each factor.

A caption names some of a scene's factors and never a wrong value. Which factors it names, in which order and in which
frame, is random. A factor that it does not name may have any value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from headspan.errors import SettingsError
from headspan.world.factors import SHAPES, Scene, Thing
from headspan.world.stream import Stream
from headspan.world.words import (
    COUNTED,
    FRAMES,
    GROUND_PREPOSITIONS,
    GROUND_WORDS,
    NOUNS,
    NUMBERS,
    SINGLE,
    SIZE_WORDS,
    STYLE_FRAMES,
    TEXTURE_ENDINGS,
    TEXTURE_WORDS,
    ground_phrase,
    listed,
    phrases,
    plural,
    position_phrases,
    with_article,
)

FACTORS = ("colour", "shape", "texture", "size", "count", "position", "style", "background", "background_colour")


@dataclass(frozen=True, slots=True)
class Chances:
    """The probability that a caption names a factor that it could name. At 0, no word of the caption depends on it."""

    shape: float = 0.88
    # Where the shape is not named, the colour is, unless its chance is 0.
    colour: float = 0.75
    texture: float = 0.55
    size: float = 0.5
    position: float = 0.65
    style: float = 0.4
    # Whether the background is named at all, and then its colour and its kind: often one of them, sometimes both.
    ground: float = 0.4
    ground_colour: float = 0.8
    ground_kind: float = 0.45


CHANCES = Chances()


def caption(scene: Scene, random: Stream, chances: Chances = CHANCES) -> str:
    """A true caption of the scene. Another call with the same `random` may give another caption."""
    body = _repeated(scene, random, chances) if scene.repeated else _different(scene, random, chances)
    frames = STYLE_FRAMES[scene.style] if random.chance(chances.style) else FRAMES
    text = random.choice(frames).format(body)
    if random.chance(chances.ground):
        text += f"{random.choice((',', ''))} {random.choice(GROUND_PREPOSITIONS)} {_ground(scene, random, chances)}"
    return text


def focused_caption(scene: Scene, random: Stream, factors: Sequence[str] = FACTORS) -> str:
    """A true caption that names a single factor, one of `factors` of which the scene has a single value.

    A factor that `factors` repeats is chosen more often in proportion. Every scene has a background and a style.
    """
    factor, value = random.choice([(factor, value) for factor in factors if (value := value_of(scene, factor))])
    if factor == "style":
        noun = random.choice(NOUNS)
        return random.choice(STYLE_FRAMES[value]).format(with_article(noun) if scene.count == 1 else plural(noun))
    return random.choice(FRAMES).format(random.choice(_phrases(factor, value, scene.count > 1)))


def prompts(factor: str) -> dict[str, list[str]]:
    """Texts for each value of a factor. For zero-shot classification, average their vectors value by value.

    Values are spelled as `value_of` spells them; counts are digits. Raises SettingsError for a factor not in FACTORS.
    """
    if factor not in FACTORS:
        raise SettingsError(f"factor {factor!r} does not exist; choose one of {', '.join(FACTORS)}")
    if factor == "style":
        return {
            style: [frame.format(what) for frame in frames for what in ("a shape", "shapes", "an object", "objects")]
            for style, frames in STYLE_FRAMES.items()
        }
    return {
        value: [frame.format(phrase) for phrase in ways for frame in FRAMES[:4]]
        for value, ways in phrases(factor).items()
    }


@cache
def _phrases(factor: str, value: str, several: bool) -> tuple[str, ...]:
    """The phrases for a value that speak of one object, or of several."""
    many = {plural(noun) for noun in (*NOUNS, *SHAPES)}
    return tuple(phrase for phrase in phrases(factor)[value] if several == (not many.isdisjoint(phrase.split())))


def value_of(scene: Scene, factor: str) -> str | None:
    """A scene's value of a factor, spelled as in `prompts`, or None if the scene has no single value.

    Only scenes with one kind of object have a colour, shape, texture, size and count. Only scenes with one object have
    a position. Every scene has a style, a background and a background colour.
    """
    if factor == "count":
        return str(scene.count) if scene.repeated else None
    if factor in ("style", "background", "background_colour"):
        return str(getattr(scene, factor))
    if factor == "position":
        return scene.things[0].position if scene.count == 1 else None
    return str(getattr(scene.things[0], factor)) if scene.repeated else None


def _repeated(scene: Scene, random: Stream, chances: Chances) -> str:
    """Describe one kind of object, with the number of objects, or with the position of a single one."""
    thing = scene.things[0]
    words, noun, ending = _described(thing, random, chances)
    if scene.count == 1:
        text = " ".join([*words, noun])
        text = with_article(text) if random.chance(0.8) else f"{random.choice(SINGLE)} {text}"
        where = f" {random.choice(position_phrases(thing.position))}" if random.chance(chances.position) else ""
        return f"{text}{ending}{where}"
    text = " ".join([*words, plural(noun)])
    if scene.count == 2 and random.chance(0.25):
        text = f"a pair of {text}"
    elif random.chance(0.88) or not words:
        text = f"{random.choice(COUNTED).format(NUMBERS[scene.count])} {text}"
    return f"{text}{ending}"


def _different(scene: Scene, random: Stream, chances: Chances) -> str:
    """Describe different objects: their number, each of them in turn, or one of them "among other shapes"."""
    way = random.unit()
    if way < 0.12:
        return f"{NUMBERS[scene.count]} {random.choice(('different ', ''))}{plural(random.choice(NOUNS))}"
    if way < 0.3:
        others = "and another shape" if scene.count == 2 else random.choice(("among other shapes", "and other shapes"))
        return f"{_one(random.choice(scene.things), random, chances)} {others}"
    return listed([_one(thing, random, chances) for thing in random.sample(scene.things, scene.count)])


def _one(thing: Thing, random: Stream, chances: Chances) -> str:
    words, noun, ending = _described(thing, random, chances)
    return f"{with_article(' '.join([*words, noun]))}{ending}"


def _described(thing: Thing, random: Stream, chances: Chances) -> tuple[list[str], str, str]:
    """Adjectives, noun, and words after the noun."""
    open_shape = not random.chance(chances.shape)
    noun = random.choice(NOUNS) if open_shape else thing.shape
    words: list[str] = []
    ending = ""
    if random.chance(chances.size):
        words.append(random.choice(SIZE_WORDS[thing.size]))
    if random.chance(chances.texture):
        if random.chance(0.75):
            words.append(random.choice(TEXTURE_WORDS[thing.texture]))
        else:
            ending = f" {random.choice(TEXTURE_ENDINGS[thing.texture])}"
    if (open_shape and chances.colour) or random.chance(chances.colour):
        words.append(thing.colour)
    return words, noun, ending


def _ground(scene: Scene, random: Stream, chances: Chances) -> str:
    """The background by kind, by colour, or by both. A tone is only named with its colour."""
    kind = random.choice(GROUND_WORDS[scene.background])
    colour = f"{scene.background_tone} {scene.background_colour}" if random.chance(0.7) else scene.background_colour
    way = random.unit()
    named = way >= 1 - chances.ground_kind, way < chances.ground_colour
    return ground_phrase(kind if named[0] else "", colour if named[1] else "")
