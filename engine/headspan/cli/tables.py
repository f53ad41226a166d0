"""Tables of scores beside what chance gives, and the remark on scores whose formula is not published."""

from __future__ import annotations

import math
from collections.abc import Sequence

from headspan.cli.terminal import say
from headspan.concepts.consistency import UNSOURCED, ConceptConsistency
from headspan.concepts.labels import Labels
from headspan.concepts.nulls import UNLABELLED, ConsistencyChance
from headspan.escapes import escaped

# The columns of `score_row` after the name.
SCORE_COLUMNS = (
    *("heads", "labelled", "high", "moderate", "low"),
    *(f"CCS@{k}" for k in range(6)),
    *("CCR", "association*", "entanglement*"),
)


def score_row(name: str, found: ConceptConsistency) -> tuple[str, ...]:
    """A name and its scores; counts stand beside the expected number by chance, in brackets, if it is known."""
    chance = found.chance
    labelled = int(found.labels.labelled.sum() if chance is None else chance.beating().sum())
    expected = chance.expected if chance else {}
    counts = [with_chance(labelled, chance.expected_beating() if chance else None)]
    counts += [with_chance(count, expected.get(group)) for group, count in found.groups.items()]
    shares = [*found.at_k, found.ccr, found.association, found.entanglement]
    return (name, f"{found.scores.size}", *counts, *map(_share, shares))


def with_chance(count: int, expected: float | None) -> str:
    """A count, and in brackets the expected number by chance if it is known."""
    return f"{count}" if expected is None else f"{count} ({expected:{'.2g' if expected < 10 else '.0f'}})"


def label_cells(labels: Labels, chance: ConsistencyChance | None, layer: int, head: int) -> tuple[str, ...]:
    """The label of a head, its `p` and adjusted `p`; a label that does not beat chance stands behind that remark."""
    label = labels.name(layer, head)
    if chance is None:
        return (label or "-",)
    if label is not None and not chance.beats(layer, head):
        label = f"{UNLABELLED}, most common: {label}"
    p, adjusted = chance.of(layer, head)
    return (label or "-", f"p {p:.2g}", f"adjusted {adjusted:.2g}")


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def print_table(rows: Sequence[tuple[str, ...]], words: int = 0) -> None:
    """Print rows as aligned columns: the first column and the last `words` to the left, the others to the right."""
    for line in aligned(rows, left=1, words=words):
        say(line)


def aligned(rows: Sequence[Sequence[str]], left: int | None = None, words: int = 0) -> list[str]:
    """Rows as lines of aligned columns: the first `left` and the last `words` columns to the left, others to the right.

    By default, all columns are to the left.
    """
    shown = [tuple(map(escaped, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    last = len(widths) - words
    sides = [str.ljust if left is None or place < left or place >= last else str.rjust for place in range(len(widths))]
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in shown
    ]


def print_unsourced(*found: ConceptConsistency) -> None:
    """Print which formulas are our own reading, because their source could not be read."""
    formulas = f"{UNSOURCED['association']}; {UNSOURCED['entanglement']}"
    say(f"* [unsourced]: our own formulas, because the published ones could not be read: {formulas}")
    if any(len(one.votes.judges) > 1 for one in found):
        say(f"also [unsourced]: {UNSOURCED['majority']}")
