"""How alike the samples of a feature are to an independent encoder, from sums over blocks.

The monosemanticity score is the mean cosine of all pairs of samples, weighted by the product of the feature's codes,
which are scaled so that the smallest is 0 and the largest 1 (Pach et al., arXiv 2504.02821). Their code loops over
N²/2 pairs. With unit vectors `e` and scaled codes `a` it equals

    (‖Σ a e‖² − Σ a²) / ((Σ a)² − Σ a²).

Scaling is affine, so its sums follow from those of the codes before scaling, and one pass is enough. The score across
sides is the mean over an image and a text, `Σ a e · Σ b f / (Σ a Σ b)`.

EmbSim is the mean cosine of the m samples with the largest codes, `(‖Σ e‖² − m) / (m (m − 1))`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64, UInt64

from headspan.features.scores.codes import Codes, sums_by_feature, weighted_sums

SIZES = (5, 10, 20, 50)
# Images that random sets are drawn from.
_RESERVOIR = 4096


class SideSums:
    """Sums over the codes of one side, with the unit vectors of an encoder: `width` + 6 numbers for each feature."""

    def __init__(self, features: int, width: int) -> None:
        self.count, self.vector_sum = 0, np.zeros(width)
        self.active = np.zeros(features, np.int64)
        self.total, self.square, self._largest = (np.zeros(features) for _ in range(3))
        # Over the samples in which it is active; of all samples it is 0 unless a feature is active in all of them.
        self._smallest = np.full(features, np.inf)
        self.weighted = np.zeros((features, width))

    def add(self, codes: Codes, vectors: Float[np.ndarray, "vector width"]) -> None:
        """Add the codes of a block, and the unit vectors of the same samples."""
        values = codes.data.astype(np.float64)
        self.count += len(vectors)
        self.vector_sum += vectors.sum(axis=0, dtype=np.float64)
        self.active += np.bincount(codes.indices, minlength=len(self.active))
        self.total += sums_by_feature(values, codes)
        self.square += sums_by_feature(values**2, codes)
        np.maximum.at(self._largest, codes.indices, values)
        np.minimum.at(self._smallest, codes.indices, values)
        self.weighted += weighted_sums(codes, vectors)

    def scaled(self) -> Scaled:
        """The sums of the codes scaled to the range from 0 to 1; NaN for features whose codes are all equal."""
        least = np.where(self.active == self.count, self._smallest, 0.0) if self.count else self.total
        with np.errstate(invalid="ignore", divide="ignore"):
            per = 1 / np.where(self._largest > least, self._largest - least, np.nan)
        total = (self.total - self.count * least) * per
        square = (self.square - 2 * least * self.total + self.count * least**2) * per**2
        return Scaled(total, square, (self.weighted - least[:, None] * self.vector_sum) * per[:, None])


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """Sums over samples of scaled codes: `Σ a`, `Σ a²` and `Σ a e`."""

    total: Float64[np.ndarray, " feature"]
    square: Float64[np.ndarray, " feature"]
    weighted: Float64[np.ndarray, "feature width"]

    def monosemanticity(self) -> Float64[np.ndarray, " feature"]:
        """The score of each feature; NaN where fewer than two samples have codes above the smallest."""
        pairs = self.total**2 - self.square
        # One sample has no pair; what is left of the difference is rounding.
        enough = pairs > 1e-9 * self.total**2
        return _divided((self.weighted**2).sum(axis=1) - self.square, pairs, enough)

    def across(self, other: Scaled) -> Float64[np.ndarray, " feature"]:
        """The score over a sample of each of two sides; NaN where one of them has no code above its smallest."""
        weight = self.total * other.total
        return _divided((self.weighted * other.weighted).sum(axis=1), weight, weight > 0)


def top_similarity(
    numbers: Int64[np.ndarray, "feature top"], vectors: Float32[np.ndarray, "number width"], sizes: tuple[int, ...]
) -> Float64[np.ndarray, "feature size"]:
    """EmbSim of each feature's first samples; `numbers` are rows of `vectors`, −1 where there are fewer: then NaN."""
    found = np.full((len(numbers), len(sizes)), np.nan)
    # Some 64 MB of vectors at once.
    step = max(1, (1 << 24) // max(1, numbers.shape[1] * vectors.shape[1]))
    for first in range(0, len(numbers), step):
        some = numbers[first : first + step]
        sums, done = np.zeros((len(some), vectors.shape[1])), 0
        for size, place in sorted((size, place) for place, size in enumerate(sizes)):
            if size > numbers.shape[1]:
                break
            # Those of smaller sizes are in the sums already.
            sums += vectors[np.maximum(some[:, done:size], 0)].sum(axis=1)
            done = size
            alike = ((sums**2).sum(axis=1) - size) / (size * (size - 1))
            found[first : first + step, place] = np.where(some[:, size - 1] >= 0, alike, np.nan)
    return found


class Reservoir:
    """Unit vectors of images with the smallest hashes: a random sample that does not depend on blocks."""

    def __init__(self, size: int = _RESERVOIR) -> None:
        self._size = size
        self._hashes = np.empty(0, np.uint64)
        self.vectors = np.empty((0, 0), np.float32)

    def add(self, hashes: UInt64[np.ndarray, " vector"], vectors: Float[np.ndarray, "vector width"]) -> None:
        """Add the images of a block; an image that comes again is not added again."""
        fresh = np.unique(hashes, return_index=True)[1]
        fresh = fresh[~np.isin(hashes[fresh], self._hashes)]
        if len(self._hashes) == self._size:
            fresh = fresh[hashes[fresh] < self._hashes[-1]]
        if len(fresh):
            joined = np.concatenate([self._hashes, hashes[fresh]])
            order = np.argsort(joined)[: self._size]
            rows = np.concatenate([self.vectors.reshape(-1, vectors.shape[1]), vectors[fresh].astype(np.float32)])
            self._hashes, self.vectors = joined[order], rows[order]


@dataclass(frozen=True, slots=True)
class WinRate:
    """How many features' samples are more alike than as many samples at random."""

    share: float
    # One-sided sign test: so many wins or more, if a feature's samples were random. Features are not independent where
    # they share samples, so it is too small.
    p: float
    features: int


def win_rate(
    similarity: Float64[np.ndarray, " feature"], vectors: Float32[np.ndarray, "image width"], size: int, seed: int = 0
) -> WinRate:
    """Compare each feature's EmbSim with that of a random set of `size` images of its own; ties count as losses."""
    measured = similarity[~np.isnan(similarity)]
    if not len(measured) or len(vectors) < size:
        return WinRate(float("nan"), float("nan"), 0)
    # Imported here, since scores are read without it. scipy.stats would take seconds to load.
    from scipy.special import bdtrc

    random = np.random.default_rng([seed, size])
    drawn = np.stack([random.choice(len(vectors), size, replace=False) for _ in measured])
    wins = int((measured > top_similarity(drawn, vectors, (size,))[:, 0]).sum())
    p = float(bdtrc(wins - 1, len(measured), 0.5)) if wins else 1.0
    return WinRate(wins / len(measured), p, len(measured))


def _divided(above: np.ndarray, below: np.ndarray, where: np.ndarray) -> Float64[np.ndarray, " feature"]:
    return np.asarray(np.divide(above, below, out=np.full(len(above), np.nan), where=where))
