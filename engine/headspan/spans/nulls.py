"""What chance explains: the shares of a pool without meaning, and of a pool with all directions.

The null is a meaningless pool: the pool's vectors times a random orthogonal matrix of the joint space. Lengths and
angles among the texts stay, their meaning is lost. One rotation holds for all heads of a draw, so that a draw's heads
depend on one another as the run's heads do. The same greedy rounds run on the same moments.

The ceiling is an isotropic pool: as many unit vectors as the pool has texts, in uniformly random directions. It is no
null, because texts crowd in few directions; it says what so many directions reach.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64
from threadpoolctl import threadpool_limits

from headspan.errors import SettingsError, counted
from headspan.spans.algorithm import Principal
from headspan.spans.greedy import greedy

# With 40 draws, lowest and highest are the ends of the 95 % range, and a p of 0.05 is two of 41.
DRAWS = 40
SEED = 0
# With fewer draws no share is above the 0.05 of them that are highest.
LEAST_DRAWS = 20
# At five texts, the mean over so many isotropic pools has a standard error of about one percentage point.
_ISOTROPIC_POOLS = 8
# Texts of problems that are solved together: a share of a core's cache.
_BATCH_BYTES = 4 << 20
# Shares of different pools that differ by less are equal: a head whose every direction is explained reaches 1 with
# any pool, up to rounding.
_TIE = 1e-6


@dataclass(frozen=True, slots=True, repr=False)
class SpanNull:
    """Shares that a pool without meaning explains: the pool's vectors, rotated at random."""

    seed: int
    # Cumulative, as `HeadSpans.explained`.
    explained: Float[np.ndarray, "draw layer head text"]
    # The mean over isotropic pools of the same size.
    ceiling: Float[np.ndarray, "layer head text"]

    def __repr__(self) -> str:
        return f"SpanNull({len(self.explained)} draws, seed {self.seed})"


@dataclass(frozen=True, slots=True)
class Chance:
    """A head's explained share at `texts` texts beside what chance gives."""

    texts: int
    explained: float
    # Mean and 95 % range of the draws.
    mean: float
    low: float
    high: float
    # The share above the mean of the draws.
    excess: float
    # What an isotropic pool of the same size explains.
    ceiling: float
    # How many of the draws explain less than the head's texts.
    rank: int
    draws: int
    # (1 + draws that explain as much or more) / (1 + draws).
    p: float


@dataclass(frozen=True, slots=True)
class HeadsAbove:
    """How many heads are above chance at one level, and how many are in a pool without meaning.

    Heads of one model share the pool, and heads whose directions overlap are above chance together, so the count may
    vary more than that of independent heads. `low`, `high` and `p` assume no independence: they come from counting, for
    every draw, its heads above the other draws.
    """

    level: float
    texts: int
    above: int
    heads: int
    # Mean and 95 % range of the count in a pool without meaning.
    expected: float
    low: float
    high: float
    # (1 + draws with as many heads or more) / (1 + draws).
    p: float


def check_draws(draws: int, seed: int) -> None:
    """Raise SettingsError if there are too few draws for a p of 0.05 and not none, or if the seed is negative."""
    if draws and draws < LEAST_DRAWS:
        raise SettingsError(
            f"{counted(draws, 'draw')}: too few for a p of 0.05; ask for at least {LEAST_DRAWS}, or for 0 to draw none"
        )
    if seed < 0:
        raise SettingsError(f"seed {seed} is negative; give a whole number from 0")


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
    rotated = rotated_shares(heads, vectors, texts_per_head, draws, seed)
    pool, joint = vectors.shape
    isotropic = isotropic_shares(heads, pool, joint, texts_per_head, seed)
    tail = (*shape, texts_per_head)
    return SpanNull(seed, rotated.astype(np.float32).reshape(draws, *tail), isotropic.astype(np.float32).reshape(tail))


def rotated_shares(
    heads: Sequence[Principal],
    vectors: Float[np.ndarray, "pool joint"],
    texts_per_head: int,
    draws: int,
    seed: int,
) -> Float64[np.ndarray, "draw head text"]:
    """The shares that the pool explains after a random rotation of the joint space, one rotation for each draw.

    Bases are rotated instead of the pool, which is equal. Products with the pool are float32, of the texts' differences
    from their mean, since the texts of an untrained model hardly differ.
    """
    exact = np.asarray(vectors, np.float64)
    mean = exact.mean(axis=0)
    differences = (exact - mean).astype(np.float32)
    padded = _Padded.of(heads)
    bases = padded.bases.astype(np.float32)

    def draw(number: int) -> Float64[np.ndarray, "head text"]:
        rotation = random_rotation(exact.shape[1], np.random.default_rng([seed, number])).astype(np.float32)

        def texts(part: slice) -> Float64[np.ndarray, "head pool rank"]:
            rotated = rotation @ bases[part]
            return (differences @ rotated).astype(np.float64) + (mean @ rotated.astype(np.float64))[:, None]

        return padded.shares(texts, len(exact), texts_per_head)

    return _in_threads(draw, draws)


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
        return padded.shares(lambda part: within * inside[part], pool, texts_per_head)

    return _in_threads(draw, _ISOTROPIC_POOLS).mean(axis=0)


def random_rotation(size: int, generator: np.random.Generator) -> Float64[np.ndarray, "size size"]:
    """An orthogonal matrix, uniform over all of them (Mezzadri, "How to generate random matrices", 2007)."""
    orthogonal, triangle = np.linalg.qr(generator.standard_normal((size, size)))
    signs: Float64[np.ndarray, "size size"] = orthogonal * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
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

    def shares(
        self, texts: Callable[[slice], Float64[np.ndarray, "head pool rank"]], pool: int, texts_per_head: int
    ) -> Float64[np.ndarray, "head text"]:
        """The shares that texts explain, a few heads at a time; `texts` are given in the heads' coordinates."""
        together = max(1, _BATCH_BYTES // (8 * pool * self.bases.shape[2]))
        found = []
        for first in range(0, len(self.bases), together):
            part = slice(first, first + together)
            found.append(greedy(texts(part), self.covariances[part], texts_per_head)[1])
        shares: Float64[np.ndarray, "head text"] = np.concatenate(found) / self.variances[:, None]
        return shares


def _in_threads(draw: Callable[[int], np.ndarray], draws: int) -> np.ndarray:
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.stack(list(threads.map(draw, range(draws))))


def chance_of(
    explained: Float[np.ndarray, " text"], null: Float[np.ndarray, "draw text"], ceiling: Float32[np.ndarray, " text"]
) -> Chance:
    """A head's last share in `explained` beside the draws' and the ceiling's."""
    own, drawn = float(explained[-1]), null[:, -1].astype(np.float64)
    low, high = range_of(drawn)
    reached = int((drawn >= own - _TIE).sum())
    return Chance(
        texts=len(explained),
        explained=own,
        mean=float(drawn.mean()),
        low=low,
        high=high,
        excess=own - float(drawn.mean()),
        ceiling=float(ceiling[-1]),
        rank=len(drawn) - reached,
        draws=len(drawn),
        p=(1 + reached) / (1 + len(drawn)),
    )


def range_of(drawn: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    """The 95 % range: a further draw is below or above it with 2.5 % each; with fewer than 39 draws, all of them."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="weibull")
    return float(low), float(high)


def heads_above(
    explained: Float[np.ndarray, " head"], null: Float[np.ndarray, "draw head"], texts: int, level: float
) -> HeadsAbove:
    """Count the heads whose share is above chance at `level`, and do the same with every draw in the run's place."""
    if not 0 < level < 1:
        raise SettingsError(f"level {level} is not a level; give a number between 0 and 1, such as 0.05")
    draws = len(null)
    # The most draws that may reach the share of a head that is above chance. It holds for a draw among the others too:
    # their number is smaller by one, and a rule of its own would be stricter for draws than for the run.
    most = math.floor(level * (1 + draws) + 1e-9) - 1
    above = int(_above(explained, null, most).sum())
    others = [_above(null[draw], np.delete(null, draw, axis=0), most).sum() for draw in range(draws)]
    counts = np.array(others, np.float64)
    low, high = range_of(counts)
    p = (1 + int((counts >= above).sum())) / (1 + draws)
    return HeadsAbove(
        level, texts, above, len(explained), float(counts.mean()), float(np.floor(low)), float(np.ceil(high)), p
    )


def _above(own: Float[np.ndarray, " head"], drawn: Float[np.ndarray, "draw head"], most: int) -> np.ndarray:
    above: np.ndarray = (drawn >= own - _TIE).sum(axis=0) <= most
    return above
