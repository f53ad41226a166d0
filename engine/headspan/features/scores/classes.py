"""Class features as text-dominant, cross-modal or image-dominant, or leave them undecided.

By spread: below the mean minus the standard deviation of MDS over features, above the mean plus it, or between. Where
most features belong to one side alone, as in dictionaries that split the modalities, the mean plus the standard
deviation is near 1, and few features can lie above it. By interval: the whole bootstrap interval of MDS must lie below
1/3 (texts' codes are on average twice the images'), above 2/3, or between; other features are undecided. Either way
features that are active in fewer than 20 pairs are undecided.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8, Int64

from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT, UNDECIDED

LEAST_PAIRS = 20
BOUNDS = (1 / 3, 2 / 3)


def by_spread(
    mds: Float64[np.ndarray, " feature"], active: Int64[np.ndarray, " feature"], least_pairs: int = LEAST_PAIRS
) -> Int8[np.ndarray, " feature"]:
    """Classes by mean ± standard deviation of MDS over the features that have enough pairs."""
    enough = active >= least_pairs
    found = np.full(len(mds), UNDECIDED, np.int8)
    if enough.any():
        low, high = spread(mds, active, least_pairs)
        found[enough] = CROSS_MODAL
        found[enough & (mds < low)] = TEXT_DOMINANT
        found[enough & (mds > high)] = IMAGE_DOMINANT
    return found


def spread(
    mds: Float64[np.ndarray, " feature"], active: Int64[np.ndarray, " feature"], least_pairs: int = LEAST_PAIRS
) -> tuple[float, float]:
    """Mean − and mean + standard deviation of MDS over the features that have enough pairs; NaN without any."""
    scores = mds[active >= least_pairs]
    if not len(scores):
        return float("nan"), float("nan")
    return float(scores.mean() - scores.std()), float(scores.mean() + scores.std())


def by_interval(
    interval: Float64[np.ndarray, "feature 2"],
    active: Int64[np.ndarray, " feature"],
    bounds: tuple[float, float] = BOUNDS,
    least_pairs: int = LEAST_PAIRS,
) -> Int8[np.ndarray, " feature"]:
    """Classes by the side of the bounds on which the whole interval lies."""
    enough, (low, high) = active >= least_pairs, interval.T
    found = np.full(len(active), UNDECIDED, np.int8)
    found[enough & (high < bounds[0])] = TEXT_DOMINANT
    found[enough & (low > bounds[1])] = IMAGE_DOMINANT
    found[enough & (low >= bounds[0]) & (high <= bounds[1])] = CROSS_MODAL
    return found
