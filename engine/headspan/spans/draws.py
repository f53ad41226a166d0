"""Draw what chance explains: rotate a pool at random, or replace it by one with all directions, and choose texts again.

`nulls` says what the draws mean. Heads are solved side by side in batches; the moments are those of the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float64, Int64
from threadpoolctl import threadpool_limits

from headspan.spans.algorithm import Principal
from headspan.spans.greedy import greedy
from headspan.spans.nulls import SpanNull
from headspan.spans.stability import FIRST_TEXTS

# At five texts, the mean over so many isotropic pools has a standard error of about one percentage point.
_ISOTROPIC_POOLS = 8
# Texts of problems that are solved together: a share of a core's cache.
_BATCH_BYTES = 4 << 20
T = TypeVar("T")


def draw_null(
    heads: Sequence[Principal],
    vectors: Float[np.ndarray, "pool joint"],
    texts_per_head: int,
    draws: int,
    seed: int,
    shape: tuple[int, int],
) -> SpanNull | None:
    """Draw `draws` meaningless pools for all heads; None for no draws. `shape` is layers and heads."""
    if draws < 1:
        return None
    rotated = rotated_spans(heads, vectors, texts_per_head, draws, seed)
    pool, joint = vectors.shape
    isotropic = isotropic_shares(heads, pool, joint, texts_per_head, seed)
    tail = (*shape, texts_per_head)
    return SpanNull(
        seed,
        rotated.explained.astype(np.float32).reshape(draws, *tail),
        isotropic.astype(np.float32).reshape(tail),
        rotated.chosen[..., :FIRST_TEXTS].reshape(draws, *shape, -1).astype(np.min_scalar_type(-pool)),
    )


class Rotated(NamedTuple):
    """What heads choose from rotated pools: cumulative shares of the variance, and places in the pool, or -1."""

    explained: Float64[np.ndarray, "draw head text"]
    chosen: Int64[np.ndarray, "draw head text"]


def rotated_spans(
    heads: Sequence[Principal],
    vectors: Float[np.ndarray, "pool joint"],
    texts_per_head: int,
    draws: int,
    seed: int,
) -> Rotated:
    """What the pool explains after a random rotation of the joint space, one rotation for each draw.

    Bases are rotated instead of the pool, which is equal. Products with the pool are float32, of the texts' differences
    from their mean, since the texts of an untrained model hardly differ.
    """
    exact = np.asarray(vectors, np.float64)
    mean = exact.mean(axis=0)
    differences = (exact - mean).astype(np.float32)
    padded = _Padded.of(heads)
    bases = padded.bases.astype(np.float32)

    def draw(number: int) -> tuple[Float64[np.ndarray, "head text"], Int64[np.ndarray, "head text"]]:
        rotation = random_rotation(exact.shape[1], np.random.default_rng([seed, number])).astype(np.float32)

        def texts(part: slice) -> Float64[np.ndarray, "head pool rank"]:
            rotated = rotation @ bases[part]
            return (differences @ rotated).astype(np.float64) + (mean @ rotated.astype(np.float64))[:, None]

        return padded.span(texts, len(exact), texts_per_head)

    explained, chosen = zip(*in_threads(draw, draws), strict=True)
    return Rotated(np.stack(explained), np.stack(chosen))


def isotropic_shares(
    heads: Sequence[Principal], pool: int, joint: int, texts_per_head: int, seed: int
) -> Float64[np.ndarray, "head text"]:
    """The mean shares that pools of `pool` unit vectors in uniformly random directions of the joint space explain."""
    padded = _Padded.of(heads)
    rank = padded.bases.shape[2]
    inside = np.arange(rank) < padded.ranks[:, None, None]

    def draw(number: int) -> Float64[np.ndarray, "head text"]:
        generator = np.random.default_rng([seed, number, 1])
        within = generator.standard_normal((pool, rank))
        # The squared length of the rest of a normal vector, outside of the head's directions.
        rest = generator.chisquare(joint - rank, pool) if joint > rank else np.zeros(pool)
        within /= np.sqrt((within**2).sum(axis=1) + rest)[:, None]
        return padded.span(lambda part: within * inside[part], pool, texts_per_head)[0]

    shares: Float64[np.ndarray, "head text"] = np.mean(in_threads(draw, _ISOTROPIC_POOLS), axis=0)
    return shares


def random_rotation(
    size: int, generator: np.random.Generator, columns: int | None = None
) -> Float64[np.ndarray, "size column"]:
    """An orthogonal matrix, uniform over all of them (Mezzadri, "How to generate random matrices", 2007).

    With `columns`, its first columns alone, which costs less.
    """
    orthogonal, triangle = np.linalg.qr(generator.standard_normal((size, columns or size)))
    signs: Float64[np.ndarray, "size column"] = orthogonal * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
    return signs


@dataclass(frozen=True, slots=True)
class _Padded:
    """The principal directions of many heads, padded to one rank with zeros."""

    ranks: np.ndarray
    bases: Float64[np.ndarray, "head joint rank"]
    covariances: Float64[np.ndarray, "head rank rank"]
    # Infinite for heads without variance, so that their shares are zero.
    variances: Float64[np.ndarray, " head"]

    @classmethod
    def of(cls, heads: Sequence[Principal]) -> _Padded:
        rank = max(1, max(head.rank for head in heads))
        joint = len(heads[0].basis)
        bases, covariances = np.zeros((len(heads), joint, rank)), np.zeros((len(heads), rank, rank))
        for number, head in enumerate(heads):
            bases[number, :, : head.rank] = head.basis
            covariances[number, : head.rank, : head.rank] = head.covariance
        variances = np.array([head.variance if head.rank else np.inf for head in heads])
        return cls(np.array([head.rank for head in heads]), bases, covariances, variances)

    def span(
        self, texts: Callable[[slice], Float64[np.ndarray, "head pool rank"]], pool: int, texts_per_head: int
    ) -> tuple[Float64[np.ndarray, "head text"], Int64[np.ndarray, "head text"]]:
        """The shares that texts explain, and the chosen places, a few heads at a time.

        `texts` are given in the heads' coordinates.
        """
        together = max(1, _BATCH_BYTES // (8 * pool * self.bases.shape[2]))
        found = []
        for first in range(0, len(self.bases), together):
            part = slice(first, first + together)
            found.append(greedy(texts(part), self.covariances[part], texts_per_head))
        chosen, explained = zip(*found, strict=True)
        return np.concatenate(explained) / self.variances[:, None], np.concatenate(chosen)


def in_threads(draw: Callable[[int], T], draws: int) -> list[T]:
    """What `draw` returns for 0, 1, …, `draws` − 1, computed in parallel threads."""
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(draw, range(draws)))
