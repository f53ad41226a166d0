"""One score through a concept's heads, beside the same score through other heads and chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headspan.store.head_space import Head

# How many times as many other heads are drawn, and the seed of the draws.
DRAWS, SEED = 5, 0


@dataclass(frozen=True, slots=True)
class Draws:
    """A score through heads drawn at random: its mean, lowest and highest value over the draws."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One score, from 0 to 1, through several sets of heads."""

    # Through the heads labelled with the concept; None if there are none.
    heads: float | None
    # Through all heads of the model.
    every: float
    # Through as many heads that do not have the label; None if there are too few.
    others: Draws | None
    # What a map or a ranking without information scores; each check says how it is found.
    chance: float


def other_heads(every: Sequence[Head], heads: Sequence[Head], draws: int = DRAWS) -> list[list[Head]]:
    """`draws` sets of as many heads as `heads`, drawn without replacement from the others; none if there are too few.

    The draws depend on nothing but the arguments.
    """
    others = [head for head in every if head not in heads]
    if not heads or len(others) < len(heads):
        return []
    random = np.random.default_rng(SEED)
    return [[others[place] for place in random.permutation(len(others))[: len(heads)]] for _ in range(draws)]


def draws_of(scores: Sequence[float]) -> Draws | None:
    """Mean, lowest and highest of the scores of some draws; None without draws."""
    if not scores:
        return None
    return Draws(float(np.mean(scores)), float(min(scores)), float(max(scores)))


def draws_from_json(stored: Mapping[str, Any] | None) -> Draws | None:
    """The draws that `dataclasses.asdict` turned into `stored`; errors as in `compared_from_json`."""
    if stored is None:
        return None
    return Draws(float(stored["mean"]), float(stored["low"]), float(stored["high"]))


def compared_from_json(stored: Mapping[str, Any]) -> Compared:
    """The scores that `dataclasses.asdict` turned into `stored`.

    Raises TypeError, ValueError, LookupError or AttributeError if `stored` is anything else.
    """
    return Compared(
        None if stored["heads"] is None else float(stored["heads"]),
        float(stored["every"]),
        draws_from_json(stored["others"]),
        float(stored["chance"]),
    )
