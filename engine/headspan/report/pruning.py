"""The report's section on saved studies: what each task loses without groups of heads, beside random heads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.errors import counted
from headspan.head_names import head_name
from headspan.prune.studies.effects import TaskEffects, is_share, places
from headspan.prune.studies.statistics import RankCorrelation
from headspan.prune.studies.study_result import Study
from headspan.prune.studies.study_tables import study_rows
from headspan.report.truth_cells import percent

_NAMES = {
    "whole": "whole model",
    "random": "random, same layers",
    "unmatched": "random, any layer",
    "equal": "equal numbers",
    "equal in layer": "equal in each layer",
}
# The scores of the scatter's axis.
_SCORES = 6
# A p below this is shown as such.
_LEAST_P = 0.001


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an axis, in percent of its length."""

    left: float
    width: float


@dataclass(frozen=True, slots=True)
class PrunedRow:
    """A row of a task's table: words, and where they lie on the task's axis."""

    name: str
    # Whether it is a mean over draws, and whether it is indented below a group.
    drawn: bool
    indented: bool
    heads: str
    value: str
    change: str
    range: str
    p: str
    p_random: str
    published: str
    # The change, in percent of the axis; None for the whole model and chance.
    place: float | None = None
    # The interval, or the range of random heads.
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Dot:
    """A head in the scatter, in percent of its width and height, with the level of its colour."""

    name: str
    left: float
    top: float
    level: int


@dataclass(frozen=True, slots=True)
class Scatter:
    """Single heads: what the removal of each costs, by its CCS."""

    dots: tuple[Dot, ...]
    # Layers with the levels of their colours.
    layers: tuple[tuple[str, int], ...]
    # The height of zero, and the ends of the vertical axis in words.
    zero: float
    least: str
    most: str
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrunedTask:
    """One task of a study."""

    title: str
    note: str
    headline: str
    rows: tuple[PrunedRow, ...]
    # Where no change lies on the axis.
    zero: float
    has_published: bool
    remarks: tuple[str, ...]
    scatter: Scatter | None


@dataclass(frozen=True, slots=True)
class PrunedStudy:
    """One saved study."""

    run: str
    note: str
    tasks: tuple[PrunedTask, ...]
    remarks: tuple[str, ...]


def pruned_study(run: str, study: Study) -> PrunedStudy:
    """The study that was saved as `prune/<run>`, as it is shown."""
    effect = (
        "Direct effect: the heads’ contributions to the embedding are replaced by their means over images."
        if study.mode == "direct"
        else "Total effect: the heads’ output is zero in the live model, so that later layers feel it."
    )
    return PrunedStudy(run, effect, tuple(_task(study, each) for each in study.tasks), study.remarks)


def _task(study: Study, task: TaskEffects) -> PrunedTask:
    rows = list(study_rows(study.sets, [task]))
    ends = [value for row in rows for value in _extent(row)] + [0.0]
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 1.0
    axis = (low - margin, high + margin)
    shown = [_row(task, row, axis) for row in rows]
    if task.chance is not None:
        chance = _value(task, task.chance)
        shown.insert(1, PrunedRow("chance", False, False, "–", chance, "–", "–", "–", "–", "–"))
    items = "" if task.items == task.images else f"{counted(task.items, 'item')} of "
    remarks = [_correlation(measure, each) for measure, each in task.correlations.items()]
    if task.published_note:
        remarks.append(f"Published: {task.published_note}")
    return PrunedTask(
        task.title or task.name,
        f"{items}{counted(task.images, 'image')}",
        task.headline.replace("_", " "),
        tuple(shown),
        _place(0.0, axis),
        bool(task.published),
        tuple(remarks),
        _scatter(study, task),
    )


def _extent(row: dict[str, Any]) -> Iterable[float]:
    if row["change"] is not None:
        for name in ("change", "change_low", "change_high"):
            if row.get(name) is not None and not math.isnan(row[name]):
                yield row[name]


def _row(task: TaskEffects, row: dict[str, Any], axis: tuple[float, float]) -> PrunedRow:
    kind, low, high = row["kind"], row.get("change_low"), row.get("change_high")
    ends = None if low is None or high is None or math.isnan(low) else (low, high)
    name = row["of"] if kind == "group" else _NAMES[kind] + (f": {row['of']}" if kind.startswith("equal") else "")
    return PrunedRow(
        name,
        kind not in ("whole", "group"),
        kind in ("random", "unmatched"),
        f"{row['heads'] or '–'}",
        _value(task, row["value"]),
        "–" if row["change"] is None else _signed(task, row["change"]),
        "–" if ends is None else f"{_signed(task, ends[0])} to {_signed(task, ends[1])}",
        _probability(row.get("p")),
        _probability(row.get("p_random")),
        "–" if row.get("published") is None else f"{row['published']:g}",
        None if row["change"] is None else _place(row["change"], axis),
        None if ends is None else Span(_place(ends[0], axis), round(_place(ends[1], axis) - _place(ends[0], axis), 2)),
    )


def _scatter(study: Study, task: TaskEffects) -> Scatter | None:
    single = places(study.sets, "single")
    scored = [(study.sets[at].heads[0], ccs, at) for at, ccs in zip(single, study.ccs, strict=True) if ccs is not None]
    if not scored:
        return None
    costs = [-task.sign * task.change(at) for _, _, at in scored]
    low, high = min(0.0, *costs), max(0.0, *costs)
    margin = 0.06 * (high - low) or 1.0
    axis = (high + margin, low - margin)
    layers = sorted({layer for (layer, _), _, _ in scored})
    levels = {layer: 1 + round(4 * number / max(len(layers) - 1, 1)) for number, layer in enumerate(layers)}
    dots = []
    for ((layer, head), ccs, _), cost in zip(scored, costs, strict=True):
        # Beside one another, in the order of the layers.
        shift = 0.6 * ((layers.index(layer) + 0.5) / len(layers) - 0.5)
        words = f"{head_name(layer, head)}, CCS {ccs}: {_signed(task, -task.sign * cost)}"
        dots.append(Dot(words, 100 * (ccs + 0.5 + shift) / _SCORES, _place(cost, axis), levels[layer]))
    return Scatter(
        tuple(dots),
        tuple((f"L{layer}", level) for layer, level in levels.items()),
        _place(0.0, axis),
        _signed(task, low),
        _signed(task, high),
        tuple(f"{score}" for score in range(_SCORES)),
    )


def _correlation(measure: str, found: RankCorrelation) -> str:
    return (
        f"CCS and the {measure} without one head, over {counted(found.heads, 'head')}: Spearman {_rho(found.rho)} "
        f"(p {_probability(found.p)}); with the layer as covariate {_rho(found.within_layers)} "
        f"(p {_probability(found.p_within_layers)})."
    )


def _place(value: float, axis: Sequence[float]) -> float:
    """Where a value lies between the ends of an axis, in percent."""
    return round(100 * (value - axis[0]) / (axis[1] - axis[0]), 2)


def _value(task: TaskEffects, value: float) -> str:
    return percent(value) if is_share(task.headline) else "–" if math.isnan(value) else f"{value:.3f}"


def _signed(task: TaskEffects, change: float) -> str:
    if math.isnan(change):
        return "–"
    shown = f"{100 * change:+.1f}" if task.is_share else f"{change:+.3f}"
    # Zero has no sign.
    return shown.replace("-", "−") if shown.strip("+-0.") else shown[1:]


def _probability(p: float | None) -> str:
    if p is None or math.isnan(p):
        return "–"
    return f"< {_LEAST_P:g}" if p < _LEAST_P else f"{p:.2g}"


def _rho(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:+.2f}".replace("-", "−")
