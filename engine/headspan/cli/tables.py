"""Tables of scores, and the remark on scores whose formula is not published."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headspan.cli.terminal import say
from headspan.concepts.ccs import UNSOURCED, ConceptConsistency
from headspan.escapes import escaped

# The columns of `score_row` after the name.
SCORE_COLUMNS = (
    *("heads", "high", "moderate", "low"),
    *(f"CCS@{k}" for k in range(6)),
    *("CCR", "association*", "entanglement*"),
)


def score_row(name: str, found: ConceptConsistency) -> tuple[str, ...]:
    """A name and its scores."""
    groups = found.groups
    shares = [*found.at_k, found.ccr, found.association, found.entanglement]
    return (name, *(f"{count}" for count in (found.scores.size, *groups.values())), *map(_share, shares))


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows as aligned columns, the first column to the left and the others to the right."""
    shown = [tuple(map(escaped, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join((row[0].ljust(len(first)), *others)))


def print_unsourced(*found: ConceptConsistency) -> None:
    """Print which formulas are our own reading, because their source could not be read."""
    formulas = f"{UNSOURCED['association']}; {UNSOURCED['entanglement']}"
    say(f"* [unsourced]: our own formulas, because the published ones could not be read: {formulas}")
    if any(len(one.votes.judges) > 1 for one in found):
        say(f"also [unsourced]: {UNSOURCED['majority']}")
