"""The report's tables of what is seen through a concept's heads: maps, contrasts, neighbours, and rankings of heads.

Each score through the heads of a concept stands beside the same score through all heads, through as many other heads,
and chance. A table without rows is of a result that lacks these scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from headspan.head_names import head_name
from headspan.report.truth_cells import Bar, Cell, Table, hundredths, percent, rows_of
from headspan.world.checks import ContrastCheck, GroundTruth, NeighbourCheck, TextMapCheck
from headspan.world.compared import Draws
from headspan.world.map_checks import DESCRIPTIONS

_OTHERS = (
    "Other heads: as many heads without the label, drawn at random five times; the mean, and in brackets the lowest "
    "and the highest."
)


Check = TypeVar("Check", NeighbourCheck, TextMapCheck, ContrastCheck)


def neighbours(truth: GroundTruth) -> Table:
    """Precision of the nearest images through a concept's heads."""
    rows: list[tuple[str | Cell, ...]] = []
    for check in truth.neighbours:
        controls = (_of(control.neighbours, check.concept) for control in truth.controls.values())
        rows.append(
            (
                _name(check),
                Cell("", bar=Bar(check.through_heads, check.chance)),
                hundredths(check.through_heads),
                _optional(check.through_embedding),
                hundredths(check.through_all),
                _drawn(check.through_others),
                *(hundredths(each.through_heads) if each else "–" for each in controls),
                percent(check.chance),
            )
        )
    return Table(
        "Neighbours through the heads of a concept",
        "Share of an image’s ten nearest images that have the same value of the concept, in percent: through the heads "
        "labelled with the concept, by the whole embedding, through all heads, and through other heads. Heads whose "
        f"label is no better than chance are included. {_OTHERS} Chance: images drawn at random.",
        ("concept, heads", "", "its heads", "embedding", "all heads", "other heads", *truth.controls, "chance"),
        rows_of(rows),
        wide=True,
    )


def value_maps(truth: GroundTruth) -> Table:
    """Pixel AUC and overlap of maps of a concept's values."""
    rows: list[tuple[str | Cell, ...]] = []
    for check in truth.text_maps:
        auc, overlap = check.auc, check.overlap
        controls = (_of(control.text_maps, check.concept) for control in truth.controls.values())
        rows.append(
            (
                _name(check),
                Cell("", bar=Bar(auc.heads or 0.0, auc.chance)),
                _pair(auc.heads, overlap.heads),
                _pair(auc.every, overlap.every),
                f"{_drawn(auc.others)} | {_mean(overlap.others)}",
                *(_pair(each.auc.heads, each.overlap.heads) if each else "–" for each in controls),
                _pair(auc.chance, overlap.chance),
                _pair(check.exact_auc, check.exact_overlap),
            )
        )
    images = max((check.images for check in truth.text_maps), default=0)
    return Table(
        "Where the evidence for one value is",
        f"Maps of one value, such as “a red shape”, over up to {images:,} images, against the pixels of the objects "
        "that have it (for backgrounds, the pixels of no object). First number: area under the ROC curve, in percent: "
        "how often a pixel inside has more evidence than one outside. Second: intersection over union with the pixels "
        f"above the mean of the map’s positive part. {_OTHERS} Chance: the map of another image. Exact: "
        "a map of the share of each patch that lies inside, by the same rules.",
        ("concept, heads", "", "its heads", "all heads", "other heads", *truth.controls, "chance", "exact"),
        rows_of(rows),
        wide=True,
    )


def contrasts(truth: GroundTruth) -> Table:
    """Shares of scenes in which the contrast of two objects' texts has the right signs."""
    rows: list[tuple[str | Cell, ...]] = []
    for check in truth.contrasts:
        right, ordered = check.right, check.ordered
        controls = (_of(control.contrasts, check.concept) for control in truth.controls.values())
        rows.append(
            (
                _name(check) if check.concept != DESCRIPTIONS else f"colour and shape, {len(check.heads)}",
                Cell("", bar=Bar(right.heads or 0.0, right.chance)),
                _pair(right.heads, ordered.heads),
                _pair(right.every, ordered.every),
                f"{_drawn(right.others)} | {_mean(ordered.others)}",
                *(_pair(each.right.heads, each.ordered.heads) if each else "–" for each in controls),
                _pair(right.chance, ordered.chance),
            )
        )
    scenes = max((check.scenes for check in truth.contrasts), default=0)
    return Table(
        "Which of two objects a text means",
        f"Up to {scenes:,} scenes of two different objects: the map of the first one’s text minus that of the "
        "second’s. First number: how often it is positive on the first object and negative on the second, in percent. "
        f"Second: how often it is larger on the first. {_OTHERS} Chance: a coin decides which text is whose.",
        ("concept, heads", "", "its heads", "all heads", "other heads", *truth.controls, "chance"),
        rows_of(rows),
        wide=True,
    )


def rankings(truth: GroundTruth) -> Table:
    """How well pursuit, spectra and others rank the heads that a factor needs."""
    names = list(truth.rankings[0].auc) if truth.rankings else []
    rows = [
        (
            check.factor.replace("_", " "),
            ", ".join(head_name(layer, head) for layer, head in check.hurting) or "none",
            *(f"{_optional(check.auc[name])} | {_correlation(check.correlation[name])}" for name in names),
            f"{percent(0.5)} | 0",
        )
        for check in truth.rankings
    ]
    heads = max((check.heads for check in truth.rankings), default=0)
    return Table(
        "Which heads a factor needs",
        f"Each of the {heads} heads is replaced by its mean, and the table names those without which the accuracy of "
        "a factor falls (in 97.5 % of bootstrap samples of the images). First number: how often a ranking has such a "
        "head above another one, in percent. Second: rank correlation with the loss of margin, which all heads have. "
        "Head pursuit: share of a head’s variance in the span of the factor’s words. Spectra: share along singular "
        "directions that the concept’s texts describe. Text shares: variance of the words’ scores. Magnitude: variance "
        "of the head.",
        ("factor", "heads that hurt", *names, "chance"),
        rows_of(rows),
        wide=True,
    )


def _name(check: NeighbourCheck | TextMapCheck | ContrastCheck) -> str:
    return f"{check.concept}, {len(check.heads)}"


def _optional(share: float | None) -> str:
    return "–" if share is None else hundredths(share)


def _pair(first: float | None, second: float | None) -> str:
    return f"{_optional(first)} | {_optional(second)}"


def _drawn(draws: Draws | None) -> str:
    if draws is None:
        return "–"
    return f"{hundredths(draws.mean)} ({hundredths(draws.low)}–{hundredths(draws.high)})"


def _mean(draws: Draws | None) -> str:
    return "–" if draws is None else hundredths(draws.mean)


def _correlation(value: float | None) -> str:
    return "–" if value is None else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _of(checks: Iterable[Check], concept: str) -> Check | None:
    return next((check for check in checks if check.concept == concept), None)
