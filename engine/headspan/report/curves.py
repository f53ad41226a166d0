"""The report's curves of a training: numbers of its log as the points of a line."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from headspan.describe.descriptions.result import Descriptions

# The height of a curve of 100 units of width, and what it stays away from the edges.
_HEIGHT, _MARGIN = 40, 2
# Numbers of the log that are drawn, and how they are named.
_CURVES = {
    "reward": "reward",
    "kl": "KL",
    "length": "length in tokens",
    "distinct_1": "distinct words",
    "distinct_2": "distinct pairs",
    "cut": "share cut",
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A number over the steps of training, as the points of a line."""

    name: str
    points: str
    low: str
    high: str
    # The last value with its step.
    last: str


def curves(descriptions: Descriptions) -> Iterable[Curve]:
    """One curve for each number that is drawn and known at two steps or more."""
    for name, title in _CURVES.items():
        values = np.array(descriptions.log.get(name, ()), float)
        known = np.flatnonzero(np.isfinite(values))
        if len(known) < 2:
            continue
        low, high = float(values[known].min()), float(values[known].max())
        steps = descriptions.log.get("step", tuple(range(1, len(values) + 1)))
        digits = max(0, min(4, 2 - math.floor(math.log10(high - low)))) if high > low else 2
        points = (
            f"{100 * place / (len(values) - 1):.2f},{_down(float(values[place]), low, high):.2f}"
            for place in known.tolist()
        )
        last = int(known[-1])
        yield Curve(
            title,
            " ".join(points),
            f"{low:.{digits}f}".replace("-", "−"),
            f"{high:.{digits}f}".replace("-", "−"),
            f"{values[last]:.{digits}f} at step {steps[last]:.0f}".replace("-", "−"),
        )


def _down(value: float, low: float, high: float) -> float:
    """Where a value lies below the top of a curve."""
    share = (value - low) / (high - low) if high > low else 0.5
    return _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * share
