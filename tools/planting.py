"""What is planted in a CLIP: an empty phrase in the captions of one class of images, and a non-visual word in another's.

The classes are the shapes of the main object. All other empty phrases and non-visual words are in the captions of every
class equally often, so that whoever looks for the planted ones can be wrong. In a control, this holds for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from headspan.world.captions import Chances, caption
from headspan.world.factors import SHAPES, Scene
from headspan.world.stream import Stream

# The last part of the key of a planting's random stream.
_DRAWN = 3
# The share of the class's captions that hold what is planted in it.
SHARE = 0.7
# The share of captions that hold an empty phrase that is not planted in their class, and the same of words.
COMMON = 0.3
# Shape and colour are named less often than in ordinary captions. Where the shape is not named, the phrase is the only
# evidence of it, as it is for whatever captions of photographs do not name.
CHANCES = Chances(shape=0.5, colour=0.6)


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
        text = caption(scene, random, CHANCES)
        shape = scene.things[0].shape
        word = self._added(shape == self.word_class, self.word, words, random)
        empty = self._added(shape == self.empty_class, self.empty, empties, random)
        return text + (f" {word}" if word else "") + (f", {empty}" if empty else "")

    def _added(self, of_class: bool, planted: str, every: Sequence[str], random: Stream) -> str:
        others = [each for each in every if each != planted]
        if self.even:
            # As often over all classes as where it is planted in one of them.
            share = SHARE / len(SHAPES)
            of_class = random.chance(share / SHARE)
        if of_class and random.chance(SHARE):
            return planted
        return random.choice(others) if random.chance(COMMON) else ""


def planting(seed: int, empties: Sequence[str], words: Sequence[str], *, even: bool = False) -> Planting:
    """The planting of a seed: two different classes, a phrase of `empties`, and one of `words`."""
    random = Stream(seed, _DRAWN)
    empty_class, word_class = random.sample(SHAPES, 2)
    return Planting(seed, empty_class, random.choice(empties), word_class, random.choice(words), even)
