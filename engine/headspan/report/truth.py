"""The report's tables for a store of the image world: scores of its analyses against the known scenes.

Each score stands beside what it must be compared with: chance, all heads, the mask's area, and the controls, which are
other models over the same scenes.
"""

from __future__ import annotations

import math

from headspan.report.truth_cells import Bar, Cell, Table, hundredths, models_of, percent, rows_of
from headspan.report.truth_through_heads import contrasts, neighbours, rankings, value_maps
from headspan.world.checks import FACTOR_OF, GroundTruth


def truth_tables(truth: GroundTruth) -> tuple[Table, ...]:
    """The tables in reading order."""
    comparison = (_losses(truth),) if truth.controls else ()
    # Results of earlier versions lack some tables.
    through_heads = (value_maps(truth), contrasts(truth), neighbours(truth), rankings(truth))
    return (
        *(_zero_shot(truth), _high_heads(truth), _maps(truth), *comparison),
        *(table for table in through_heads if table.rows),
        _ablations(truth),
    )


def images_of(truth: GroundTruth) -> int:
    """The number of scenes."""
    return max(each.images for each in truth.zero_shot.values())


def _zero_shot(truth: GroundTruth) -> Table:
    rows: list[tuple[str | Cell, ...]] = [
        (
            _spaced(factor),
            Cell("", bar=Bar(each.share, each.chance)),
            *(percent(model.zero_shot[factor].share) for model in models_of(truth)),
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
        rows_of(rows),
        wide=bool(truth.controls),
    )


def _high_heads(truth: GroundTruth) -> Table:
    models, expected = models_of(truth), truth.high_by_chance
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
        rows_of(rows),
    )


def _maps(truth: GroundTruth) -> Table:
    models = models_of(truth)
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
        rows_of(rows),
    )


def _losses(truth: GroundTruth) -> Table:
    models = models_of(truth)
    found = [{each.concept: each for each in model.ablations} for model in models]
    rows = []
    for concept in FACTOR_OF:
        ablations = [each.get(concept) for each in found]
        if not any(ablations):
            continue
        cells = []
        for model, ablation in zip(models, ablations, strict=True):
            own, other = ablation.own_and_other_loss(model.zero_shot) if ablation else (math.nan, math.nan)
            cells.append(f"{hundredths(own)} | {hundredths(other)}" if ablation else "–")
        rows.append((concept, *cells))
    return Table(
        "What an ablation costs, compared",
        "Points of zero-shot accuracy lost if the heads of a concept are replaced by their means. First number: the "
        "concept’s own factor; second: the factor of another concept that loses most.",
        ("concept", "this model", *truth.controls),
        rows_of(rows),
    )


def _ablations(truth: GroundTruth) -> Table:
    factors = list(truth.zero_shot)
    rows: list[tuple[str | Cell, ...]] = []
    for each in truth.ablations:
        losses = each.losses(truth.zero_shot)
        own = FACTOR_OF.get(each.concept)
        cells = (Cell(hundredths(losses[factor]), strong=factor == own) for factor in factors)
        rows.append((f"{each.concept}, {len(each.heads)}", *cells))
    return Table(
        "What is lost without the heads of a concept",
        "Points of zero-shot accuracy lost if the direct contributions of these heads are replaced by their means. "
        "Heads whose label is no better than chance are included. The concept’s own factor is bold.",
        ("heads at their means", *map(_spaced, factors)),
        rows_of(rows),
        wide=True,
    )


def _spaced(factor: str) -> str:
    return factor.replace("_", " ")
