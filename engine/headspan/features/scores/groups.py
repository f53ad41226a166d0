"""Deal images into groups that depend on nothing but the image, and draw groups to get bootstrap intervals.

A bootstrap over pairs would keep one sum for each feature and draw, and add every pair to all of them. Here each pair
is added once, to the sums of its group, and the bootstrap draws groups (Wolter, "Introduction to Variance Estimation",
2007, chapter 2: random groups). With 256 groups the standard error has a relative error of 1/sqrt(2 · 255) = 4 %, as
with 280 draws of pairs. A feature with few pairs has most of them in groups of their own, so that drawing groups is
drawing pairs. All pairs of an image are in one group, since captions of one image are not independent.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from headspan.features.pairs.mixing import GOLDEN, mixed

GROUPS, DRAWS = 256, 1000
# The share of the draws that lies within an interval.
_WITHIN = 0.95
# Numbers of the draws of some features that are computed at once.
_AT_ONCE = 1 << 21


def image_hash(
    store: Int64[np.ndarray, " pair"], image: Int64[np.ndarray, " pair"], seed: int
) -> UInt64[np.ndarray, " pair"]:
    """64 bits that look random, for each image."""
    return mixed(image + (store << 40), seed * GOLDEN)


def groups_of(
    store: Int64[np.ndarray, " pair"], image: Int64[np.ndarray, " pair"], seed: int = 0, groups: int = GROUPS
) -> Int64[np.ndarray, " pair"]:
    """The group of each pair, whatever block it comes in."""
    return (image_hash(store, image, seed) % np.uint64(groups)).astype(np.int64)


def ratio_intervals(
    numerators: Float64[np.ndarray, "group feature"],
    denominators: Float64[np.ndarray, "group feature"],
    present: Bool[np.ndarray, " group"],
    seed: int = 0,
    draws: int = DRAWS,
) -> Float64[np.ndarray, "feature 2"]:
    """The ends of the 95 % interval of each feature's sum of numerators divided by its sum of denominators.

    `present` says which groups have pairs at all. A draw takes as many groups as are present, with replacement. NaN for
    features whose denominator is 0.
    """
    numerators, denominators = numerators[present], denominators[present]
    count, features = numerators.shape
    found = np.full((features, 2), np.nan)
    if not count:
        return found
    weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws).astype(np.float64)
    ends = [(1 - _WITHIN) / 2, (1 + _WITHIN) / 2]
    step = max(1, _AT_ONCE // draws)
    for first in range(0, features, step):
        some = slice(first, first + step)
        above, below = weights @ numerators[:, some], weights @ denominators[:, some]
        ratios = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
        # A feature with few pairs has none in some draws, and these say nothing about it.
        partly = np.isnan(ratios).any(axis=0) & ~np.isnan(ratios).all(axis=0)
        within = np.quantile(ratios, ends, axis=0)
        if partly.any():
            within[:, partly] = np.nanquantile(ratios[:, partly], ends, axis=0)
        found[some] = within.T
    return found
