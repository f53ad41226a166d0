"""Words of descriptions by the factor that they name, of classes that have a colour as well as a shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from benchmarks.planted_clips import CLASSES, KEY
from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.rewards.reward import Reward
from headspan.store.reader import Store
from headspan.tasks.factors import Factors
from headspan.tasks.truths import UNKNOWN
from headspan.world.factors import COLOURS
from headspan.world.parts import EMPTY, NON_VISUAL, VISUAL, parts_of
from headspan.world.sentences import sentence

COLOUR = "objects.colour"
# Of the first head that is asked, pink and purple, of the second one, brown, and three that neither tells apart.
OWN_COLOURS = dict(zip(CLASSES, ("pink", "purple", "brown", "red", "green", "blue"), strict=True))


def coloured_classes(store: Store) -> DescribedClasses:
    """Shapes of one colour each, that of OWN_COLOURS."""
    factors = Factors(store, [KEY, COLOUR]).values
    numbers = np.full(store.images, UNKNOWN, np.int64)
    for number, pair in enumerate(OWN_COLOURS.items()):
        numbers[[each == pair for each in zip(factors[KEY], factors[COLOUR], strict=True)]] = number
    present = [number for number in range(len(CLASSES)) if (numbers == number).any()]
    order = {number: place for place, number in enumerate(present)}
    return DescribedClasses(
        tuple(CLASSES[number] for number in present),
        np.array([order.get(number, UNKNOWN) for number in numbers.tolist()], np.int64),
        f"key {KEY}",
    )


def best_colours(reward: Reward) -> dict[str, str]:
    """The colour that a reward prefers for each class, in "a picture of a red star"."""
    found = {}
    for number, name in enumerate(reward.classes.names):
        texts = [sentence({"shape": name, "colour": colour}).text for colour in COLOURS]
        found[name] = COLOURS[int(reward.of(texts, [number] * len(texts)).argmax())]
    return found


def words_by_factor(written: Descriptions, best: Mapping[str, str]) -> dict[str, float]:
    """Of the parts that say something, the share by factor; of colours and shapes, that of the class's own.

    `best colour` is the share of colours that `best_colours` gave.
    """
    counts: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text, number, times in zip(written.texts, written.class_of.tolist(), written.times.tolist(), strict=True):
        name = written.classes[number]
        own = {"shape": name, "colour": OWN_COLOURS[name]}
        for part in parts_of(text):
            factor = part.factor if part.kind == VISUAL else part.kind
            if part.kind in (VISUAL, EMPTY, NON_VISUAL):
                counts[factor] += times
                right[f"right {factor}"] += times * (own.get(factor) == part.value)
                right["best colour"] += times * (factor == "colour" and best[name] == part.value)
    shares = {factor: round(count / counts.total(), 4) for factor, count in counts.most_common()}
    of = {"right colour": "colour", "right shape": "shape", "best colour": "colour"}
    return shares | {name: round(right[name] / max(counts[factor], 1), 4) for name, factor in of.items()}
