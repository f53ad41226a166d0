"""TEXTSPAN of all heads, from moments alone, in each head's own coordinates.

Source: Gandelsman, Efros, Steinhardt, "Interpreting CLIP's Image Representation via Text-Based
Decomposition", ICLR 2024, Algorithm 1, and its public code. The cost does not depend on the number of
images: the greedy score needs the covariance alone, the rank cut the uncentred Gram matrix, and both
follow from count, sum and Gram of at most `head_dim + 3` coordinates. The texts are never rewritten:
what a round takes away is a rank-two change of the covariance.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from threadpoolctl import threadpool_limits

from headspan.errors import SettingsError, counted

# Singular values below this share of the largest are the rounding of float32 contributions (16 ulps of 1).
RANK_TOLERANCE = 2.0**-20
# A variance below this share of the mean square is the rounding of contributions that do not vary.
_VARIANCE_TOLERANCE = 2.0**-44
# A text whose score is below this share of the first one's explains rounding, not images.
_SCORE_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True)
class TextSpan:
    """The texts that span one head, in the order in which they were chosen.

    `indices` `[texts_per_head]` counts in the pool, -1 where nothing was left to explain; `explained`
    is the cumulative share of the contributions' variance; `mean` and the orthonormal `directions` are
    what reconstruction takes.
    """

    indices: Int64[np.ndarray, " text"]
    explained: Float64[np.ndarray, " text"]
    mean: Float32[np.ndarray, " joint"]
    directions: Float32[np.ndarray, "direction joint"]

    def reconstruct(self, contributions: Float[np.ndarray, "images joint"]) -> Float[np.ndarray, "images joint"]:
        """The contributions as far as the chosen texts say: their mean, and what lies along the texts."""
        centred = contributions - self.mean
        return self.mean + (centred @ self.directions.T) @ self.directions


class Spread(NamedTuple):
    """What TEXTSPAN needs of one head: uncentred Gram matrix over `images` images, sum, and joint directions."""

    images: int
    total: Float64[np.ndarray, " coordinate"]
    gram: Float64[np.ndarray, "coordinate coordinate"]
    directions: Float[np.ndarray, "coordinate joint"]


def textspan_dense(
    contributions: Float[np.ndarray, "images joint"],
    texts: Float[np.ndarray, "pool joint"],
    texts_per_head: int = 60,
    rank: int = 80,
) -> TextSpan:
    """TEXTSPAN of one head on plain arrays. Raises SettingsError where sizes do not fit."""
    contributions, texts = np.asarray(contributions), np.asarray(texts)
    if contributions.ndim != 2 or texts.ndim != 2 or contributions.shape[1] != texts.shape[1]:
        raise SettingsError(
            f"contributions {contributions.shape} and texts {texts.shape}; give [images, joint] and [texts, joint] "
            "with one joint dimension"
        )
    if not (np.isfinite(contributions).all() and np.isfinite(texts).all()):
        raise SettingsError("contributions or texts hold NaN or infinity; leave out images that failed")
    exact = contributions.astype(np.float64)
    spread = Spread(len(exact), exact.sum(axis=0), exact.T @ exact, np.eye(exact.shape[1]))
    return span_heads([spread], texts, texts_per_head, rank)[0]


def span_heads(
    spreads: Iterable[Spread], texts: Float[np.ndarray, "pool joint"], texts_per_head: int, rank: int
) -> list[TextSpan]:
    """TEXTSPAN of many heads over one pool, side by side. Raises SettingsError where counts do not fit."""
    check_counts(len(texts), texts_per_head, rank)
    pool = np.asarray(texts, dtype=np.float64)
    # A thread a head, not threads within one: the products of a round are small.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda spread: _span_head(spread, pool, texts_per_head, rank), spreads))


def check_counts(pool: int, texts_per_head: int, rank: int) -> None:
    """Raise SettingsError where so many texts a head cannot be had of a pool of that size, or the rank is none."""
    if not 1 <= texts_per_head <= pool:
        raise SettingsError(f"{counted(texts_per_head, 'text')} a head from a pool of {pool}; ask for 1 to {pool}")
    if rank < 1:
        raise SettingsError(f"rank {rank}; ask for at least 1")


def _span_head(spread: Spread, pool: Float64[np.ndarray, "pool joint"], texts_per_head: int, rank: int) -> TextSpan:
    if spread.images < 2:
        raise SettingsError(f"TEXTSPAN over {counted(spread.images, 'image')}; a variance needs at least 2")
    # Orthonormal joint directions make the change of coordinates an isometry.
    orthonormal, triangle = np.linalg.qr(spread.directions.T.astype(np.float64))
    gram = triangle @ spread.gram @ triangle.T
    mean = triangle @ spread.total / spread.images
    covariance = (gram - spread.images * np.outer(mean, mean)) / (spread.images - 1)
    variance = float(np.trace(covariance))
    joint_mean = (orthonormal @ mean).astype(np.float32)
    if not variance > _VARIANCE_TOLERANCE * np.trace(gram) / spread.images:
        nothing = np.zeros(texts_per_head)
        return TextSpan(nothing.astype(np.int64) - 1, nothing, joint_mean, np.empty((0, len(joint_mean)), np.float32))
    kept = _leading_directions(gram, rank)
    basis = orthonormal @ kept
    chosen, directions, explained = _choose(pool @ basis, kept.T @ covariance @ kept, texts_per_head)
    return TextSpan(chosen, explained / variance, joint_mean, (directions @ basis.T).astype(np.float32))


def _leading_directions(gram: Float64[np.ndarray, "c c"], rank: int) -> Float64[np.ndarray, "c rank"]:
    """Right singular vectors of the uncentred contributions: at most `rank`, at most the numerical rank."""
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    numerical_rank = int(np.count_nonzero(squares > RANK_TOLERANCE**2 * squares[0]))
    return vectors[:, : min(rank, numerical_rank)]


def _choose(
    texts: Float64[np.ndarray, "pool rank"], covariance: Float64[np.ndarray, "rank rank"], count: int
) -> tuple[Int64[np.ndarray, " text"], Float64[np.ndarray, "direction rank"], Float64[np.ndarray, " text"]]:
    """The greedy rounds: chosen texts, their deflated unit vectors, and the variance explained so far."""
    scores = np.einsum("tr,tr->t", texts @ covariance, texts)
    least = _SCORE_TOLERANCE * scores.max(initial=0)
    chosen = np.full(count, -1, np.int64)
    explained = np.zeros(count)
    directions = np.empty((min(count, texts.shape[1]), texts.shape[1]))
    for done in range(len(directions)):
        best = int(scores.argmax())
        if not scores[best] > least:
            return chosen, directions[:done], explained
        taken = directions[:done]
        u = texts[best].copy()
        for _ in range(2):
            # Twice is enough: the second pass takes away what rounding left of the first.
            u -= taken.T @ (taken @ u)
        u /= np.linalg.norm(u)
        w = covariance @ u
        variance = u @ w
        # Both are orthogonal to the texts chosen before, so the original texts serve.
        along_u = texts @ u
        scores -= along_u * (2 * (texts @ w) - along_u * variance)
        scores[best] = 0
        covariance = covariance - np.outer(u, w) - np.outer(w, u) + variance * np.outer(u, u)
        chosen[done], directions[done] = best, u
        explained[done:] += variance
    return chosen, directions, explained
