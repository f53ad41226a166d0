"""The report's opening for a store of the image world: what its analyses say, beside what is true.

Every number stands beside what it must be held against: chance, all heads, the mask's area, random weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from headspan.world.ground_truth import FACTOR_OF, GroundTruth


@dataclass(frozen=True, slots=True)
class Bar:
    """A share as a bar, and chance as a line across it."""

    share: float
    chance: float


@dataclass(frozen=True, slots=True)
class Cell:
    """Words, bold where `strong`; or a bar."""

    words: str
    strong: bool = False
    bar: Bar | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One question and its answers."""

    title: str
    note: str
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def truth_tables(truth: GroundTruth) -> tuple[Table, ...]:
    """The five questions in their order; the last is wider than the others."""
    return _zero_shot(truth), _high_heads(truth), _neighbours(truth), _maps(truth), _ablations(truth)


def images_of(truth: GroundTruth) -> int:
    """How many scenes were looked at."""
    return max(each.images for each in truth.zero_shot.values())


def _rows(rows: Iterable[Iterable[str | Cell]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)


def _zero_shot(truth: GroundTruth) -> Table:
    rows = (
        (
            _said(factor),
            Cell("", bar=Bar(each.share, each.chance)),
            percent(each.share),
            percent(each.chance),
            f"{each.images:,}",
        )
        for factor, each in truth.zero_shot.items()
    )
    return Table(
        "What the model can name",
        "Zero-shot: the prompts nearest to the image’s embedding. Chance, the line, is naming the commonest value.",
        ("factor", "", "right", "chance", "images"),
        _rows(rows),
    )


def _high_heads(truth: GroundTruth) -> Table:
    counts = (truth.high_heads, truth.high_heads_at_random)
    rows: list[tuple[str | Cell, ...]] = [
        (concept, *("–" if heads is None else f"{heads.get(concept, 0)}" for heads in counts))
        for concept in FACTOR_OF
        if any(concept in heads for heads in counts if heads is not None)
    ]
    rows.append(
        (Cell("in all", strong=True), *("–" if heads is None else f"{sum(heads.values())}" for heads in counts))
    )
    return Table(
        "Concepts with heads of their own",
        "Heads whose first five texts all tell one concept (CCS 5), and as many with random weights.",
        ("concept", "heads", "at random"),
        _rows(rows),
    )


def _neighbours(truth: GroundTruth) -> Table:
    rows = (
        (
            each.concept,
            f"{len(each.heads)}",
            percent(each.through_heads),
            percent(each.through_all),
            percent(each.chance),
        )
        for each in truth.neighbours
    )
    return Table(
        "Neighbours through the heads of a concept",
        "Of an image’s nearest ten, the share with its value of the concept: through the heads labelled with it, "
        "through all heads, and at random.",
        ("concept", "heads", "through them", "all heads", "chance"),
        _rows(rows),
    )


def _maps(truth: GroundTruth) -> Table:
    maps = truth.maps
    rows = (
        ("of its positive mass, inside the objects", percent(maps.mass_inside)),
        ("average precision of its pixels", percent(maps.average_precision)),
        ("the objects’ share of the image", percent(maps.area)),
    )
    return Table(
        "Where the evidence lies",
        f"Maps of “a red ring” over {maps.images:,} images of red rings, and so on for every colour and shape. "
        "Without knowledge, both would be the objects’ share.",
        ("map", "mean"),
        _rows(rows),
    )


def _ablations(truth: GroundTruth) -> Table:
    factors = list(truth.zero_shot)
    rows: list[tuple[str | Cell, ...]] = []
    for each in truth.ablations:
        lost = {factor: truth.zero_shot[factor].share - each.accuracies[factor] for factor in factors}
        own = FACTOR_OF.get(each.concept)
        cells = (Cell(_points(lost[factor]), strong=factor == own) for factor in factors)
        rows.append((f"{each.concept}, {len(each.heads)}", *cells))
    return Table(
        "What is lost without the heads of a concept",
        "Zero-shot accuracy lost, in points, when the direct contributions of these heads are replaced by their means; "
        "bold is the concept’s own factor.",
        ("heads at their means", *map(_said, factors)),
        _rows(rows),
    )


def _said(factor: str) -> str:
    return factor.replace("_", " ")


def percent(share: float) -> str:
    """A share, to a tenth of a percent; a dash where it is not defined."""
    return "–" if math.isnan(share) else f"{100 * share:.1f}\u202f%"


def _points(share: float) -> str:
    # Without the sign of a rounded zero.
    return f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")
