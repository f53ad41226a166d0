"""Scores of neighbours and maps against known truths: arrays in, numbers out.

Each function states its formula and its value at chance.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

from headspan.explore.maps.segmentation import average_precision

NEAREST = 10


def precision_at(
    scores: Float32[np.ndarray, "image image"], same: Bool[np.ndarray, "image image"], nearest: int = NEAREST
) -> float:
    """Precision@`nearest`: the mean over images i of #{j in N(i): same[i, j]} / #N(i).

    N(i) holds the `nearest` other images with the highest scores[i, j], or all others where there are fewer. Scores
    that are independent of the truth give `chance_of_same` on average. NaN for fewer than two images.
    """
    nearest = min(nearest, len(scores) - 1)
    if nearest < 1:
        return float("nan")
    # An image is not its own neighbour.
    others = scores.copy()
    np.fill_diagonal(others, -np.inf)
    chosen = np.argpartition(others, -nearest, axis=1)[:, -nearest:]
    return float(np.take_along_axis(same, chosen, axis=1).mean())


def same_value(values: np.ndarray) -> Bool[np.ndarray, "image image"]:
    """Whether two different images have the same value; False on the diagonal."""
    same = values[:, None] == values
    np.fill_diagonal(same, False)
    return same


def chance_of_same(same: Bool[np.ndarray, "image image"]) -> float:
    """The probability that a second image, drawn at random, has the first one's value: Σ_v n_v (n_v − 1) / (n (n − 1)).

    NaN for fewer than two images.
    """
    pairs = len(same) * (len(same) - 1)
    return float(same.sum() / pairs) if pairs else float("nan")


class MapScores(NamedTuple):
    """How well one map falls on the mask, each from 0 to 1."""

    mass_inside: float
    area: float
    average_precision: float


def map_scores(evidence: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> MapScores:
    """Score a map of evidence E against a mask M of the same size.

    `mass_inside` is Σ_M max(E, 0) / Σ max(E, 0), or 0 for a map without positive evidence. `area` is #M / #pixels.
    `average_precision` ranks pixels by E. A constant positive map gives `area` for both.
    """
    positive = np.maximum(evidence, 0)
    total = positive.sum()
    inside = positive[mask].sum() / total if total else 0.0
    return MapScores(float(inside), float(mask.mean()), average_precision(evidence, mask))


def pixel_auc(evidence: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> float:
    """Area under the ROC curve of a map's pixels: the probability that a pixel inside has more evidence than one
    outside, ties counted half.

    0.5 for a constant map. NaN if the mask is empty or covers the whole image.
    """
    inside, outside = evidence[mask], np.sort(evidence[~mask])
    if not len(inside) or not len(outside):
        return float("nan")
    below, up_to = (np.searchsorted(outside, inside, side=side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(outside))


def overlap(evidence: Float32[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]) -> float:
    """Intersection over union of the mask M and the pixels above the mean of max(E, 0).

    The threshold is the published one (Gandelsman et al., ICLR 2024). 0 for a map without positive evidence.
    """
    positive = np.maximum(evidence, 0)
    chosen = positive > positive.mean()
    union = int((chosen | mask).sum())
    return int((chosen & mask).sum()) / union if union else float("nan")


def means_of(
    evidence: Float32[np.ndarray, "height width"],
    first: Bool[np.ndarray, "height width"],
    second: Bool[np.ndarray, "height width"],
) -> tuple[float, float]:
    """The means of a contrast over the pixels of its first and of its second object; NaN if an object has no pixel."""
    if not first.any() or not second.any():
        return float("nan"), float("nan")
    return float(evidence[first].mean()), float(evidence[second].mean())


def ranking_auc(scores: Float[np.ndarray, " item"], positive: Bool[np.ndarray, " item"]) -> float | None:
    """The probability that a positive item has a higher score than another one, ties counted half; 0.5 by chance.

    None if all items are positive, or none.
    """
    inside, outside = scores[positive], scores[~positive]
    if not len(inside) or not len(outside):
        return None
    higher = (inside[:, None] > outside).mean() + (inside[:, None] == outside).mean() / 2
    return float(higher)


def rank_correlation(first: Float[np.ndarray, " item"], second: Float[np.ndarray, " item"]) -> float | None:
    """Spearman's correlation, equal values at their mean rank; 0 by chance. None if one of them is constant."""
    ranks = np.array([_ranks(first), _ranks(second)])
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    return float(centred[0] @ centred[1] / lengths.prod()) if lengths.all() else None


def _ranks(values: Float[np.ndarray, " item"]) -> Float[np.ndarray, " item"]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]
