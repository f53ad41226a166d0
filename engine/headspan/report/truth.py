"""The report's tables for a store of the image world: scores of its analyses against the known scenes.

Each score stands beside what it must be compared with: chance, all heads, the mask's area, and the controls, which are
other models over the same scenes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from headspan.world.checks import FACTOR_OF, GroundTruth


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


def truth_tables(truth: GroundTruth) -> tuple[Table, ...]:
    """The tables in reading order."""
    comparison = (_losses(truth),) if truth.controls else ()
    return _zero_shot(truth), _high_heads(truth), _maps(truth), _neighbours(truth), *comparison, _ablations(truth)


def images_of(truth: GroundTruth) -> int:
    """The number of scenes."""
    return max(each.images for each in truth.zero_shot.values())


def _models(truth: GroundTruth) -> tuple[GroundTruth, ...]:
    """The store's own model, then the controls."""
    return truth, *truth.controls.values()


def _rows(rows: Iterable[Iterable[str | Cell]]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row) for row in rows)


def _zero_shot(truth: GroundTruth) -> Table:
    rows: list[tuple[str | Cell, ...]] = [
        (
            _spaced(factor),
            Cell("", bar=Bar(each.share, each.chance)),
            *(percent(model.zero_shot[factor].share) for model in _models(truth)),
            percent(each.chance),
            f"{each.images:,}",
        )
        for factor, each in truth.zero_shot.items()
    ]
    return Table(
        "What the model can name",
        "Zero-shot accuracy: how often the prompts nearest to the image’s embedding are those of the true value. The "
        "line marks chance: always naming the most common value.",
        ("factor", "", "right", *truth.controls, "chance", "images"),
        _rows(rows),
        wide=bool(truth.controls),
    )


def _high_heads(truth: GroundTruth) -> Table:
    models, expected = _models(truth), truth.high_by_chance
    rows: list[tuple[str | Cell, ...]] = [
        (
            concept,
            *(f"{model.high_heads.get(concept, 0)}" for model in models),
            *([f"{expected.get(concept, 0.0):.2g}"] if expected else ()),
        )
        for concept in FACTOR_OF
        if any(concept in model.high_heads for model in models)
    ]
    counts = (f"{sum(model.high_heads.values())}" for model in models)
    rows.append((Cell("all", strong=True), *counts, *([f"{sum(expected.values()):.2g}"] if expected else ())))
    by_chance = (
        " Chance: the expected number if each head’s texts were drawn at random from the pool." if expected else ""
    )
    return Table(
        "Concepts with heads of their own",
        "Number of heads whose first five texts all describe one concept (CCS 5)." + by_chance,
        ("concept", "heads", *truth.controls, *(["chance"] if expected else ())),
        _rows(rows),
    )


def _neighbours(truth: GroundTruth) -> Table:
    found = [{each.concept: each for each in model.neighbours} for model in _models(truth)]
    rows = []
    for concept in FACTOR_OF:
        checks = [each.get(concept) for each in found]
        chance = next((each.chance for each in checks if each), None)
        if chance is None:
            continue
        cells = (f"{_hundredths(each.through_heads)} | {percent(each.through_all)}" if each else "–" for each in checks)
        rows.append((concept, *cells, percent(chance)))
    return Table(
        "Neighbours through the heads of a concept",
        "Share of an image’s ten nearest images that have the same value of the concept. First number: neighbours "
        "through the heads labelled with the concept; second: through all heads. Heads whose label is "
        "no better than chance are included. Chance: images drawn at random.",
        ("concept", "this model", *truth.controls, "chance"),
        _rows(rows),
    )


def _maps(truth: GroundTruth) -> Table:
    models = _models(truth)
    rows = (
        ("positive mass inside the objects", *(percent(model.maps.mass_inside) for model in models)),
        ("average precision of the pixels", *(percent(model.maps.average_precision) for model in models)),
        ("the objects’ share of the image", *(percent(model.maps.area) for model in models)),
    )
    return Table(
        "Where the evidence is",
        f"Means over {truth.maps.images:,} images, each with the map of the text that names its objects, such as “a "
        "red ring”. A map that is the same everywhere would score the objects’ share of the image.",
        ("map", "this model", *truth.controls),
        _rows(rows),
    )


def _losses(truth: GroundTruth) -> Table:
    models = _models(truth)
    found = [{each.concept: each for each in model.ablations} for model in models]
    rows = []
    for concept in FACTOR_OF:
        ablations = [each.get(concept) for each in found]
        if not any(ablations):
            continue
        cells = []
        for model, ablation in zip(models, ablations, strict=True):
            own, other = ablation.own_and_other_loss(model.zero_shot) if ablation else (math.nan, math.nan)
            cells.append(f"{_hundredths(own)} | {_hundredths(other)}" if ablation else "–")
        rows.append((concept, *cells))
    return Table(
        "What an ablation costs, compared",
        "Points of zero-shot accuracy lost if the heads of a concept are replaced by their means. First number: the "
        "concept’s own factor; second: the factor of another concept that loses most.",
        ("concept", "this model", *truth.controls),
        _rows(rows),
    )


def _ablations(truth: GroundTruth) -> Table:
    factors = list(truth.zero_shot)
    rows: list[tuple[str | Cell, ...]] = []
    for each in truth.ablations:
        losses = each.losses(truth.zero_shot)
        own = FACTOR_OF.get(each.concept)
        cells = (Cell(_hundredths(losses[factor]), strong=factor == own) for factor in factors)
        rows.append((f"{each.concept}, {len(each.heads)}", *cells))
    return Table(
        "What is lost without the heads of a concept",
        "Points of zero-shot accuracy lost if the direct contributions of these heads are replaced by their means. "
        "Heads whose label is no better than chance are included. The concept’s own factor is bold.",
        ("heads at their means", *map(_spaced, factors)),
        _rows(rows),
        wide=True,
    )


def _spaced(factor: str) -> str:
    return factor.replace("_", " ")


def percent(share: float) -> str:
    """A share, to a tenth of a percent; a dash if it is not defined."""
    return "–" if math.isnan(share) else f"{_hundredths(share)}\u202f%"


def _hundredths(share: float) -> str:
    # Adding zero removes the sign of a rounded zero.
    return "–" if math.isnan(share) else f"{round(100 * share, 1) + 0.0:.1f}".replace("-", "−")
