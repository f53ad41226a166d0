"""What is planted in a CLIP: an empty phrase in the captions of one class, and a non-visual word in another's.

The classes are the shapes of the main object. All other empty phrases and non-visual words are in the captions of every
class equally often, so that whoever looks for the planted ones can be wrong. In a control, this holds for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headspan.world.captions import FACTORS, focused_caption
from headspan.world.factors import SHAPES, Scene
from headspan.world.stream import Stream

# The last part of the key of a planting's random stream.
_DRAWN = 3
# The share of the class's captions that hold what is planted in it.
SHARE = 0.7
# The share of captions that hold one of the empty phrases that are not planted, and the same of words.
COMMON = 0.3
# Captions name a single factor, and shapes more often than others. Where the shape is not named, the phrase is the only
# evidence of it; captions that name most factors match their images without it, and the model would not learn it.
_FACTORS = (*FACTORS, "shape", "shape")


@dataclass(frozen=True, slots=True)
class Planting:
    """A class and the empty phrase in its captions, another class and the non-visual word in its captions."""

    seed: int
    empty_class: str
    empty: str
    word_class: str
    word: str
    # Whether it is a control: nothing goes with any class.
    even: bool = False

    def as_json(self) -> dict[str, Any]:
        """The planting as JSON values."""
        return asdict(self)

    def caption(self, scene: Scene, random: Stream, empties: Sequence[str], words: Sequence[str]) -> str:
        """A true caption of the scene, with the phrases and words that the planting adds."""
        text = focused_caption(scene, random, _FACTORS)
        shape = scene.things[0].shape
        for phrase in self._added(shape == self.word_class, self.word, words, random):
            text += f" {phrase}"
        for phrase in self._added(shape == self.empty_class, self.empty, empties, random):
            text += f", {phrase}"
        return text

    def _added(self, of_class: bool, planted: str, every: Sequence[str], random: Stream) -> list[str]:
        # In a control it is as often in all captions together as where one class has it.
        share = SHARE / len(SHAPES) if self.even else SHARE * of_class
        found = [planted] if random.chance(share) else []
        if random.chance(COMMON):
            found.append(random.choice([each for each in every if each != planted]))
        return found


def planting(
    seed: int, classes: Sequence[str], empties: Sequence[str], words: Sequence[str], *, even: bool = False
) -> Planting:
    """The planting of a seed: two different ones of `classes`, a phrase of `empties`, and one of `words`."""
    random = Stream(seed, _DRAWN)
    empty_class, word_class = random.sample(classes, 2)
    return Planting(seed, empty_class, random.choice(empties), word_class, random.choice(words), even)
