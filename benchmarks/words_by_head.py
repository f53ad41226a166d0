"""Words of descriptions by the factor that they name, of classes that have a colour as well as a shape."""

from __future__ import annotations

from collections import Counter

import numpy as np

from benchmarks.planted_clips import CLASSES, KEY
from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.descriptions.result import Descriptions
from headspan.store.reader import Store
from headspan.tasks.factors import Factors
from headspan.tasks.truths import UNKNOWN
from headspan.world.factors import COLOURS
from headspan.world.parts import EMPTY, NON_VISUAL, VISUAL, parts_of

COLOUR = "objects.colour"


def coloured_classes(store: Store) -> DescribedClasses:
    """Shapes of one colour each: the n-th shape in the n-th colour."""
    factors = Factors(store, [KEY, COLOUR]).values
    numbers = np.full(store.images, UNKNOWN, np.int64)
    for number, pair in enumerate(zip(CLASSES, COLOURS, strict=False)):
        numbers[[each == pair for each in zip(factors[KEY], factors[COLOUR], strict=True)]] = number
    present = [number for number in range(len(CLASSES)) if (numbers == number).any()]
    order = {number: place for place, number in enumerate(present)}
    return DescribedClasses(
        tuple(CLASSES[number] for number in present),
        np.array([order.get(number, UNKNOWN) for number in numbers.tolist()], np.int64),
        f"key {KEY}",
    )


def words_by_factor(written: Descriptions) -> dict[str, float]:
    """Of the parts that say something, the share by factor, and of colours and shapes, the share of the class's own."""
    counts: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text, number, times in zip(written.texts, written.class_of.tolist(), written.times.tolist(), strict=True):
        name = written.classes[number]
        own = {"shape": name, "colour": COLOURS[CLASSES.index(name)]}
        for part in parts_of(text):
            factor = part.factor if part.kind == VISUAL else part.kind
            if part.kind in (VISUAL, EMPTY, NON_VISUAL):
                counts[factor] += times
                right[factor] += times * (own.get(factor) == part.value)
    shares = {factor: round(count / counts.total(), 4) for factor, count in counts.most_common()}
    return shares | {f"right {name}": round(right[name] / max(counts[name], 1), 4) for name in ("colour", "shape")}
