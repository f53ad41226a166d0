"""The parts of the report's tables of scores against the known scenes: rows, cells, bars and percentages."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from headspan.world.checks import GroundTruth


@dataclass(frozen=True, slots=True)
class Bar:
    """A share as a bar, with chance as a line across it; both from 0 to 1."""

    share: float
    chance: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Words, bold if `strong`; or a bar."""

    words: str
    strong: bool = False
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One question and its answers: a title, a note, the columns' names, and rows."""

    title: str
    note: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    # Whether the table needs the width of two.
    wide: bool = False


def models_of(truth: GroundTruth) -> tuple[GroundTruth, ...]:
    """The store's own model, then the controls."""
    return truth, *truth.controls.values()


def rows_of(rows: Iterable[Iterable[str | Cell]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of cells; a string becomes a cell of plain words."""
    return tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)


def percent(share: float) -> str:
    """A share, to a tenth of a percent; a dash if it is not defined."""
    return "–" if math.isnan(share) else f"{hundredths(share)}\u202f%"


def hundredths(share: float) -> str:
    """The number of percent alone, to a tenth; a dash if it is not defined."""
    # Adding zero removes the sign of a rounded zero.
    return "–" if math.isnan(share) else f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")
