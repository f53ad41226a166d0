"""What chance explains: the shares of a pool without meaning, and of a pool with all directions.

The null is a meaningless pool: the pool's vectors times a random orthogonal matrix of the joint space. Lengths and
angles among the texts stay, their meaning is lost. One rotation holds for all heads of a draw, so that a draw's heads
depend on one another as the run's heads do. The same greedy rounds run on the same moments.

The ceiling is an isotropic pool: as many unit vectors as the pool has texts, in uniformly random directions. It is no
null, because texts crowd in few directions; it says what so many directions reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int

from headspan.errors import SettingsError, counted

# With 40 draws, lowest and highest are the ends of the 95 % range, and a p of 0.05 is two of 41.
DRAWS = 40
SEED = 0
# With fewer draws no share is above the 0.05 of them that are highest.
LEAST_DRAWS = 20
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
    # The places of the first five texts that each draw chose, or -1; None for runs of earlier versions.
    picks: Int[np.ndarray, "draw layer head first"] | None = None

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
    # What an isotropic pool of the same size explains; in head pursuit, what as many directions explain at best.
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


def chance_columns(chances: Sequence[Chance], suffix: str = "") -> dict[str, list[Any]]:
    """Columns of a table whose rows have these chances; `suffix` ends their names."""
    return {
        f"{name}{suffix}": [getattr(chance, field) for chance in chances]
        for name, field in (
            ("null_mean", "mean"),
            ("null_low", "low"),
            ("null_high", "high"),
            ("excess", "excess"),
            ("ceiling", "ceiling"),
            ("draws_below", "rank"),
            ("p", "p"),
        )
    }


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
