"""TEXTSPAN of all heads, computed from moments in each head's own coordinates.

Source: Gandelsman, Efros, Steinhardt, "Interpreting CLIP's Image Representation via Text-Based
Decomposition", ICLR 2024, Algorithm 1, and its public code. The cost does not depend on the number of
images: the greedy score needs the covariance, the rank limit needs the uncentred Gram matrix, and both
follow from the count, sum and Gram matrix of at most `head_dim + 3` coordinates. Each round removes the
chosen direction by a rank-two update of the covariance; the texts themselves are not changed.
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

from headspan.errors import SettingsError, counted, percent

# Singular values below this share of the largest are the rounding of float32 contributions (16 ulps of 1).
RANK_TOLERANCE = 2.0**-20
# A variance below this share of the mean square is the rounding of contributions that do not vary.
VARIANCE_TOLERANCE = 2.0**-44
# A text whose score is below this share of the first one's explains rounding errors, not images.
SCORE_TOLERANCE = 1e-12


@dataclass(frozen=True, slots=True, repr=False)
class TextSpan:
    """The texts that span one head, in the order in which they were chosen."""

    # Places in the pool; -1 if no variance was left to explain.
    indices: Int64[np.ndarray, " text"]
    # Cumulative share of the contributions' variance, from 0 to 1.
    explained: Float64[np.ndarray, " text"]
    # The contributions' mean and the texts' orthonormal directions, for `reconstruct`.
    mean: Float32[np.ndarray, " joint"]
    directions: Float32[np.ndarray, "direction joint"]

    def __repr__(self) -> str:
        chosen, explained = int((self.indices >= 0).sum()), float(self.explained[-1])
        return f"TextSpan({counted(chosen, 'text')} that explain {percent(explained)} of the variance)"

    def reconstruct(self, contributions: Float[np.ndarray, "images joint"]) -> Float[np.ndarray, "images joint"]:
        """Project contributions onto the chosen texts: their mean plus the part along `directions`."""
        centred = contributions - self.mean
        return self.mean + (centred @ self.directions.T) @ self.directions


class Spread(NamedTuple):
    """The moments of one head's coordinates over `images` images, and the coordinates' directions in joint space."""

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
    """TEXTSPAN of one head on plain arrays: contributions to unit embeddings, and unit text vectors.

    Method: Gandelsman, Efros, Steinhardt, ICLR 2024, Algorithm 1. The contributions are centred here; they are first
    projected to at most `rank` principal directions. Sums are accumulated in float64. Raises SettingsError if shapes do
    not fit, numbers are not finite, there are fewer than two images, or fewer texts than `texts_per_head`.
    """
    contributions, texts = np.asarray(contributions), np.asarray(texts)
    if contributions.ndim != 2 or texts.ndim != 2 or contributions.shape[1] != texts.shape[1]:
        raise SettingsError(
            f"contributions {contributions.shape} and texts {texts.shape} do not fit; give [images, joint] and "
            "[texts, joint] with the same joint dimension"
        )
    if not (np.isfinite(contributions).all() and np.isfinite(texts).all()):
        raise SettingsError("contributions or texts contain NaN or infinity; leave out images that failed")
    exact = contributions.astype(np.float64)
    spread = Spread(len(exact), exact.sum(axis=0), exact.T @ exact, np.eye(exact.shape[1]))
    return span_heads([spread], texts, texts_per_head, rank)[0]


class Principal(NamedTuple):
    """One head's contributions in their principal directions: what the greedy rounds need, whatever the pool.

    `basis` is orthonormal, `covariance` is of the coordinates along it, and `variance` is that of all directions. A
    head whose contributions do not vary has a basis without directions.
    """

    mean: Float32[np.ndarray, " joint"]
    basis: Float64[np.ndarray, "joint rank"]
    covariance: Float64[np.ndarray, "rank rank"]
    variance: float

    @property
    def rank(self) -> int:
        """The number of directions."""
        return len(self.covariance)

    @property
    def effective_rank(self) -> float:
        """`(tr Σ)² / tr Σ²`: how many directions share the variance; 0 without variance."""
        squares = float((self.covariance**2).sum())
        return float(np.trace(self.covariance)) ** 2 / squares if squares > 0 else 0.0


def span_heads(
    spreads: Iterable[Spread], texts: Float[np.ndarray, "pool joint"], texts_per_head: int, rank: int
) -> list[TextSpan]:
    """TEXTSPAN of many heads over one pool, in parallel threads. Raises SettingsError if counts do not fit."""
    check_counts(len(texts), texts_per_head, rank)
    return span_principals(principals(spreads, rank), texts, texts_per_head)


def principals(spreads: Iterable[Spread], rank: int) -> list[Principal]:
    """Find the principal directions of many heads, at most `rank` of each, in parallel threads."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda spread: _principal(spread, rank), spreads))


def span_principals(
    heads: Iterable[Principal], texts: Float[np.ndarray, "pool joint"], texts_per_head: int
) -> list[TextSpan]:
    """Choose the texts of many heads from one pool, in parallel threads."""
    pool = np.asarray(texts, dtype=np.float64)
    # One thread for each head, and none within a head: the matrix products of a round are small.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(lambda head: _span_head(head, pool, texts_per_head), heads))


def check_counts(pool: int, texts_per_head: int, rank: int) -> None:
    """Raise SettingsError if a pool of this size has fewer texts than a head is to get, or if the rank is below 1."""
    if not 1 <= texts_per_head <= pool:
        raise SettingsError(f"{counted(texts_per_head, 'text')} per head from a pool of {pool}; ask for 1 to {pool}")
    if rank < 1:
        raise SettingsError(f"rank {rank} is too small; ask for at least 1")


def _principal(spread: Spread, rank: int) -> Principal:
    if spread.images < 2:
        raise SettingsError(
            f"{counted(spread.images, 'image')}, but TEXTSPAN needs at least 2, to have a variance; give more images"
        )
    # Orthonormal joint directions make the change of coordinates an isometry.
    orthonormal, triangle = np.linalg.qr(spread.directions.T.astype(np.float64))
    gram = triangle @ spread.gram @ triangle.T
    mean = triangle @ spread.total / spread.images
    covariance = (gram - spread.images * np.outer(mean, mean)) / (spread.images - 1)
    variance = float(np.trace(covariance))
    joint_mean = (orthonormal @ mean).astype(np.float32)
    if not variance > VARIANCE_TOLERANCE * np.trace(gram) / spread.images:
        return Principal(joint_mean, np.empty((len(joint_mean), 0)), np.empty((0, 0)), 0.0)
    kept = _leading_directions(gram, rank)
    return Principal(joint_mean, orthonormal @ kept, kept.T @ covariance @ kept, variance)


def _span_head(head: Principal, pool: Float64[np.ndarray, "pool joint"], texts_per_head: int) -> TextSpan:
    if not head.rank:
        nothing = np.zeros(texts_per_head)
        return TextSpan(nothing.astype(np.int64) - 1, nothing, head.mean, np.empty((0, len(head.mean)), np.float32))
    chosen, directions, explained = _choose(pool @ head.basis, head.covariance, texts_per_head)
    return TextSpan(chosen, explained / head.variance, head.mean, (directions @ head.basis.T).astype(np.float32))


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
    least = SCORE_TOLERANCE * scores.max(initial=0)
    chosen = np.full(count, -1, np.int64)
    explained = np.zeros(count)
    directions = np.empty((min(count, texts.shape[1]), texts.shape[1]))
    for done in range(len(directions)):
        best = int(scores.argmax())
        if not scores[best] > least:
            return chosen, directions[:done], explained
        earlier = directions[:done]
        u = texts[best].copy()
        for _ in range(2):
            # The second pass removes the rounding errors of the first; a third changes nothing.
            u -= earlier.T @ (earlier @ u)
        u /= np.linalg.norm(u)
        w = covariance @ u
        variance = u @ w
        # u and w are orthogonal to the directions chosen before, so the texts need no update.
        along_u = texts @ u
        scores -= along_u * (2 * (texts @ w) - along_u * variance)
        scores[best] = 0
        covariance = covariance - np.outer(u, w) - np.outer(w, u) + variance * np.outer(u, u)
        chosen[done], directions[done] = best, u
        explained[done:] += variance
    return chosen, directions, explained
