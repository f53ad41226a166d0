"""The levels, 0 to 5, by which the grids of the report and of the plots colour heads."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Levels:
    """The levels of a measure: lower bounds of all but the lowest, and each level's range in words."""

    bounds: tuple[float, ...]
    names: tuple[str, ...]
    # 1 if level 0 is kept for heads whose value says nothing.
    lowest: int = 0

    def of(self, value: float) -> int:
        """The level of a value; the lowest if it is NaN."""
        return self.lowest + (0 if math.isnan(value) else bisect_right(self.bounds, value))


# Shares, from 0 to 1; the names are percentage points and percent.
EXCESS = Levels((0.05, 0.1, 0.2, 0.3), ("chance", "< 5", "5–10", "10–20", "20–30", "> 30"), lowest=1)
EXPLAINED = Levels((0.2, 0.4, 0.6, 0.7, 0.8), ("< 20", "20–40", "40–60", "60–70", "70–80", "> 80"))
MAGNITUDE = Levels((0.003, 0.01, 0.03, 0.1), ("low", "< 0.3", "0.3–1", "1–3", "3–10", "> 10"), lowest=1)
# A Concept Consistency Score is its own level.
CCS = ("0", "1", "2", "3", "4", "5")


def points(share: float) -> str:
    """A share as signed percentage points, such as +48 or −9; a dash if it is not defined."""
    if math.isnan(share):
        return "–"
    whole = round(100 * share)
    return f"{whole:+d}".replace("-", "−") if whole else "0"
