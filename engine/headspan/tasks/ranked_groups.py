"""Counts of groups among the first images of a ranking, and their skews, for many draws of the images at once.

A draw of a bootstrap is the number of times that each image occurs in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int

from headspan.tasks.truths import UNKNOWN, Groups


def group_shares(groups: Groups, counts: Float32[np.ndarray, "draw images"]) -> Float64[np.ndarray, "draw group"]:
    """Each group's share of the images that have a group."""
    members = groups.numbers[:, None] == np.arange(len(groups.names))
    sizes = (counts @ members.astype(np.float32)).astype(np.float64)
    return sizes / np.maximum(sizes.sum(axis=1, keepdims=True), 1)


def first_counts(
    cosines: Float32[np.ndarray, " images"],
    groups: Groups,
    counts: Float32[np.ndarray, "draw images"],
    lengths: Sequence[int],
) -> Float64[np.ndarray, "length draw group"]:
    """How many of the first `lengths` images of a ranking belong to each group, in each draw.

    Images without a group are not ranked. Of equal cosines the first image is first; NaN is last. `lengths` ascend.
    """
    most, own = lengths[-1], cosines.copy()
    own[np.isnan(own)] = -np.inf
    ranked = np.flatnonzero(groups.numbers != UNKNOWN)
    if len(ranked) < len(own):
        own = own[ranked]
    # Enough images for every draw of a bootstrap, which leaves out a third of them, in nearly all cases.
    for enough in (4 * most + 20, 16 * most + 80, len(ranked)):
        first = ranked[_largest(own, enough)]
        ends = counts[:, first].cumsum(axis=1)
        if len(first) == len(ranked) or ends[:, -1].min() >= most:
            break
    taken = np.diff(np.minimum(ends, np.asarray(lengths, np.float32)[:, None, None]), axis=2, prepend=0)
    members = groups.numbers[first, None] == np.arange(len(groups.names))
    return taken.astype(np.float64) @ members.astype(np.float64)


def skews_of(
    firsts: Float64[np.ndarray, "length draw group"], shares: Float64[np.ndarray, "draw group"], smoothing: float
) -> Float64[np.ndarray, "length draw group"]:
    """`ln(p ÷ q)` of every group; NaN for a group that is absent from the first images, without smoothing.

    `smoothing` images are added to the count of every group. A group that a draw leaves out has no skew.
    """
    present = shares > 0
    tops = _tops(firsts, present, smoothing)
    skews = np.full(tops.shape, np.nan)
    has_skew = (tops > 0) & present
    np.log(np.divide(tops, shares, where=has_skew, out=skews), where=has_skew, out=skews)
    return skews


def ndkl_of(
    firsts: Float64[np.ndarray, "length draw group"], shares: Float64[np.ndarray, "draw group"], smoothing: float
) -> Float64[np.ndarray, " draw"]:
    """NDKL, from the counts among the first 1, 2, … images."""
    skews = skews_of(firsts, shares, smoothing)
    divergences = np.nansum(_tops(firsts, shares > 0, smoothing) * skews, axis=2)
    discounts = 1 / np.log2(np.arange(len(firsts)) + 2)
    found: Float64[np.ndarray, " draw"] = discounts @ divergences / discounts.sum()
    return found


def _tops(firsts: np.ndarray, present: np.ndarray, smoothing: float) -> np.ndarray:
    """The groups' shares among the first images."""
    smoothed = firsts + smoothing * present
    return np.asarray(smoothed / np.maximum(smoothed.sum(axis=2, keepdims=True), 1e-300))


def _largest(values: Float32[np.ndarray, " value"], most: int) -> Int[np.ndarray, " first"]:
    """Places of the `most` largest values, or of some more, the largest first; of equal values the first is first."""
    if most >= len(values):
        return np.argsort(-values, kind="stable")
    # With all values as large as the last one, so that equal ones stay in order.
    least = np.partition(values, len(values) - most)[len(values) - most]
    near = np.flatnonzero(values >= least)
    return near[np.argsort(-values[near], kind="stable")]
