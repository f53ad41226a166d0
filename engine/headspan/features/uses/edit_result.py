"""An edited embedding with its neighbours, and the result of many edits as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import counted
from headspan.features.uses.use import Use

# What a row of a study is about: the source as it is, the donor as it is, the source with a class of features taken
# from the donor, or with as many random features of equal energy.
Kind = Literal["source", "donor", "class", "random"]


@dataclass(frozen=True, slots=True)
class FactorShares:
    """Of the neighbours that have a value of a factor, the shares with the source's and with the donor's."""

    # None where the source or the donor has no value, or no neighbour has one.
    source: float | None
    donor: float | None
    # The same of all images of the store.
    source_base: float | None
    donor_base: float | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EditedImage(Use):
    """A source's embedding with one class of features taken from a donor, and its nearest images in the store."""

    use = "edit"
    # What the source and the donor are called: the key of an image, or a text.
    source: str
    donor: str
    # The class of features; `random` with its name for a control.
    features: str
    # As long as the source's embedding, which has the length that the model gives; `to_unclip` takes it.
    embedding: Float32[np.ndarray, " joint"]
    # Cosines of the edited embedding with the source's and with the donor's.
    source_cosine: float
    donor_cosine: float
    # Image indices, the nearest first, without source and donor; their cosines; and their keys.
    images: Int64[np.ndarray, " count"]
    scores: Float32[np.ndarray, " count"]
    keys: tuple[str, ...]
    # By factor.
    factors: Mapping[str, FactorShares] = field(default_factory=dict)
    # The same edit with as many random features of equal energy; empty for a control itself.
    controls: tuple[EditedImage, ...] = ()

    def __repr__(self) -> str:
        return (
            f"EditedImage({self.source} with {self.features} features of {self.donor}: {', '.join(self.keys[:3])}, …)"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "rank": list(range(1, len(self.images) + 1)),
            "image": self.images.tolist(),
            "key": self.keys,
            "score": [float(each) for each in self.scores],
        }


@dataclass(frozen=True, slots=True)
class EditRow:
    """What one kind of edit does to one factor: means over pairs in which source and donor differ in the factor."""

    kind: Kind
    # The class of features, or the class that random features are a control of; empty for source and donor.
    exchanged: str
    features: int
    sets: int
    factor: str
    pairs: int
    # Shares of neighbours with the source's and with the donor's value. For random features, means over sets.
    source: float
    donor: float
    # The least and the largest share with the donor's value of any random set; None for other kinds.
    donor_low: float | None
    donor_high: float | None
    # Shares of all images of the store.
    source_base: float
    donor_base: float
    # Cosines of the edited embedding with the source's and the donor's.
    source_cosine: float
    donor_cosine: float


@dataclass(frozen=True, slots=True, repr=False)
class EditStudy(Use):
    """Which factors of images move when a class of features is taken from others, beside random features."""

    use = "edit"
    pairs: int
    neighbours: int
    # What donors are: images or captions.
    donors: str
    rows: tuple[EditRow, ...]

    def __repr__(self) -> str:
        factors = len(dict.fromkeys(each.factor for each in self.rows))
        return f"EditStudy({counted(self.pairs, 'pair')}, {counted(factors, 'factor')})"

    def row(self, kind: Kind, factor: str, exchanged: str = "") -> EditRow | None:
        """The row of that kind, factor and class; None if there is none."""
        same = (each for each in self.rows if (each.kind, each.factor, each.exchanged) == (kind, factor, exchanged))
        return next(same, None)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        names = (
            *("kind", "exchanged", "features", "sets", "factor", "pairs", "source", "donor", "donor_low", "donor_high"),
            *("source_base", "donor_base", "source_cosine", "donor_cosine"),
        )
        return {name: [getattr(each, name) for each in self.rows] for name in names}
