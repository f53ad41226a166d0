"""The result of probing an attribute with classes of features removed, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from headspan.errors import SettingsError, counted, percent
from headspan.features.uses.use import Use
from headspan.prune.studies.statistics import Interval

# How the attribute is read: from the nearest class's text, by a probe trained on vectors changed alike, or by the probe
# that was trained on untouched vectors.
READERS = ZERO_SHOT, PROBE, FIXED_PROBE = "zero-shot", "probe", "fixed probe"
# What a row is about: untouched vectors, the dictionary's reconstruction, vectors without a class of features, or
# without as many random features of equal energy.
Kind = Literal["untouched", "reconstruction", "class", "random"]


@dataclass(frozen=True, slots=True)
class BiasRow:
    """How well an attribute is read from vectors that were changed in one way."""

    reader: str
    kind: Kind
    # The class of features that is removed, or that the random features are a control of; empty for other kinds.
    removed: str
    features: int
    sets: int
    # The energy of the removed features as a share of all features' energy, and the mean length of what unit vectors
    # lose; means over the sets.
    energy: float
    lost: float
    # The headline of the task first: accuracy over all test images and by group. Means over the sets.
    figures: Mapping[str, float]
    # The change of the headline from untouched vectors: with its 95 % interval over test images, and for random
    # features the least and the largest change of any set.
    change: Interval
    # The share of random sets that cost at least as much; None for other kinds than `class`, and without a control.
    p_random: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class BiasProbe(Use):
    """An attribute read from image vectors, untouched and without classes of features, beside random features."""

    use = "bias"
    task: str
    headline: str
    train_images: int
    test_images: int
    # Bootstrap samples of the test images.
    samples: int
    rows: tuple[BiasRow, ...]

    def __repr__(self) -> str:
        shown = "; ".join(
            f"{each.reader} {percent(each.figures[self.headline])}" for each in self.rows if each.kind == "untouched"
        )
        return f"BiasProbe({self.task}: {shown}; {counted(self.test_images, 'test image')})"

    def row(self, reader: str, kind: Kind, removed: str = "") -> BiasRow:
        """The row of that reader, kind and class. Raises SettingsError if there is none."""
        for each in self.rows:
            if (each.reader, each.kind, each.removed) == (reader, kind, removed):
                return each
        raise SettingsError(f"task {self.task}: no row of {reader}, {kind} {removed}; the rows are in the table")

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        names = list(dict.fromkeys(name for each in self.rows for name in each.figures))
        return {
            "reader": [each.reader for each in self.rows],
            "kind": [each.kind for each in self.rows],
            "removed": [each.removed for each in self.rows],
            "features": [each.features for each in self.rows],
            "sets": [each.sets for each in self.rows],
            "energy": [each.energy for each in self.rows],
            "lost": [each.lost for each in self.rows],
            **{name: [each.figures.get(name) for each in self.rows] for name in names},
            "change": [each.change.value for each in self.rows],
            "change_low": [each.change.low for each in self.rows],
            "change_high": [each.change.high for each in self.rows],
            "p_random": [each.p_random for each in self.rows],
        }
