"""The report's section on descriptions: each run's figures beside its baselines, its training, and its classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headspan.describe.asked.questions import prompt
from headspan.describe.descriptions.figures import Figure, figure_table
from headspan.describe.descriptions.result import Descriptions
from headspan.describe.descriptions.summary import (
    UNDECIDED_NAME,
    ClassSummary,
    attribute_counts,
    class_summaries,
    verdict_counts,
    verdict_name,
)
from headspan.describe.inspecting.summary import JudgePair, inspection_summary
from headspan.errors import counted
from headspan.prune.studies.statistics import Interval
from headspan.report.curves import Curve, curves
from headspan.store.reader import Store

# Runs with a part of their own; all are in the table that compares them.
_RUNS = 4
# Of each run: classes, of each class: different texts and images, and of all classes: attributes.
_CLASSES, _TEXTS, _IMAGES, _ATTRIBUTES = 12, 3, 4, 8
# Figures by which runs are compared, as `figure_table` names them.
COMPARED = ("reward", "KL", "zero-shot accuracy", "distinct words")
_NAMES = ("visual", "non-visual", "spurious", UNDECIDED_NAME)


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar of verdicts, in percent of its width."""

    name: str
    count: int
    width: float


@dataclass(frozen=True, slots=True)
class ShownText:
    """A description, in words."""

    text: str
    reward: str
    times: int
    question: str
    # None before an inspection.
    verdict: str | None
    attribute: str


@dataclass(frozen=True, slots=True)
class ClassCard:
    """A class: its descriptions with the highest rewards, its verdicts, and the pictures of some of its images."""

    name: str
    texts: int
    sampled: int
    reward: str
    verdicts: tuple[Part, ...]
    best: tuple[ShownText, ...]
    # Places among the page's pictures.
    pictures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ShownDescriptions:
    """One run of descriptions."""

    run: str
    note: str
    columns: tuple[str, ...]
    # Each figure with what it is, and a word for every column.
    figures: tuple[tuple[str, str, tuple[str, ...]], ...]
    judges: str
    verdicts: tuple[Part, ...]
    # The 95 % intervals of the parts, which draw whole classes, and how every two judges agree.
    ranges: tuple[str, ...]
    agreement: tuple[str, ...]
    attributes: tuple[tuple[str, str], ...]
    curves: tuple[Curve, ...]
    classes: tuple[ClassCard, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """A row of the table that compares runs."""

    run: str
    model: str
    target: str
    figures: tuple[str, ...]
    verdicts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class ChosenDescriptions:
    """A run with the indices of the images that the report shows of each of its first classes."""

    descriptions: Descriptions
    images_of: tuple[tuple[int, ...], ...]

    @property
    def images(self) -> list[int]:
        """The images whose pictures are shown."""
        return [image for images in self.images_of for image in images]


def runs_shown(runs: Sequence[Descriptions]) -> list[Descriptions]:
    """The runs with a part of their own: trained ones if there are any, the whole embedding before heads."""
    trained = [each for each in runs if each.adapter_sha256 is not None]
    return sorted(trained or runs, key=lambda each: bool(each.target.heads))[:_RUNS]


def choose_descriptions(store: Store, descriptions: Descriptions) -> ChosenDescriptions:
    """The run with some images of each class that is shown, as far as the store still shows them."""
    if descriptions.class_rows is None:
        return ChosenDescriptions(descriptions, ())
    rows = descriptions.class_rows[:_CLASSES]
    return ChosenDescriptions(
        descriptions,
        tuple(tuple(np.flatnonzero(np.isin(store.rows, each))[:_IMAGES].tolist()) for each in rows),
    )


def shown_descriptions(chosen: ChosenDescriptions, pictures: Mapping[int, int]) -> ShownDescriptions:
    """A run as it is shown. `pictures` are the places of images among the page's pictures."""
    found = chosen.descriptions
    columns, figures = figure_table(found)
    summaries = class_summaries(found)
    cards = []
    for number, of_class in enumerate(summaries[:_CLASSES]):
        images = chosen.images_of[number] if chosen.images_of else ()
        cards.append(_card(found, of_class, tuple(pictures[image] for image in images if image in pictures)))
    sampled = int(found.times.sum())
    parts = _parts(verdict_counts(found))
    summary = inspection_summary(found) if parts else None
    return ShownDescriptions(
        found.run,
        _note(found, sampled),
        columns,
        tuple(
            (each.name, each.hint, tuple(_words(each, column) for column in range(len(columns)))) for each in figures
        ),
        ", ".join(found.inspection.judges) if found.inspection is not None else "",
        parts,
        tuple(_range(summary.every.shares[each.name]) for each in parts) if summary is not None else (),
        tuple(_pair(each) for each in summary.agreement) if summary is not None else (),
        tuple(
            (name, f"{100 * times / max(1, sampled):.0f}\u202f%")
            for name, times in [*attribute_counts(found).items()][:_ATTRIBUTES]
        ),
        tuple(curves(found)),
        tuple(cards),
        tuple(_remarks(found)),
    )


def compared(runs: Iterable[Descriptions]) -> tuple[ComparedRun, ...]:
    """All runs side by side."""
    found = []
    for each in runs:
        _, figures = figure_table(each)
        by_name = {figure.name: figure for figure in figures}
        found.append(
            ComparedRun(
                each.run,
                each.model if each.adapter_sha256 is not None else f"{each.model}, untrained",
                str(each.target),
                tuple(_words(by_name[name], 0) if name in by_name else "–" for name in COMPARED),
                _parts(verdict_counts(each)),
            )
        )
    return tuple(found)


def _note(descriptions: Descriptions, sampled: int) -> str:
    trained = "trained" if descriptions.adapter_sha256 is not None else "not trained"
    classes = f"{len(descriptions.classes):,} classes ({descriptions.classes_from})"
    return (
        f"{counted(sampled, 'description')} of {classes} by {descriptions.model}, {trained}; "
        f"with the greedy answers, {len(descriptions.texts):,} are different. Rewarded for: {descriptions.target}."
    )


def _words(figure: Figure, column: int) -> str:
    each = figure.values[column]
    if not math.isfinite(each.value):
        return "–"

    def number(value: float) -> str:
        return f"{100 * value:.1f}" if figure.share else f"{value:.2f}".replace("-", "−")

    unit = "\u202f%" if figure.share else ""
    if math.isfinite(each.low) and math.isfinite(each.high):
        return f"{number(each.value)}{unit} ({number(each.low)} to {number(each.high)})"
    return f"{number(each.value)}{unit}"


def _parts(counts: Mapping[str, int]) -> tuple[Part, ...]:
    total = sum(counts.values())
    return tuple(Part(name, counts[name], round(100 * counts[name] / total, 2)) for name in _NAMES if counts.get(name))


def _range(share: Interval) -> str:
    return f"{100 * share.low:.0f} to {100 * share.high:.0f}" if math.isfinite(share.low) else ""


def _pair(pair: JudgePair) -> str:
    kappa = pair.verdicts.kappa.value
    known = f", κ {kappa:.2f}".replace("-", "−") if math.isfinite(kappa) else ""
    texts = counted(pair.verdicts.pairs, "text")
    return f"{pair.first} and {pair.second} on {100 * pair.verdicts.same:.0f}\u202f% of {texts}{known}"


def _card(descriptions: Descriptions, summary: ClassSummary, pictures: tuple[int, ...]) -> ClassCard:
    # Equal answers to several questions are shown once, with the largest reward.
    first: dict[str, int] = {}
    for each in summary.best.tolist():
        first.setdefault(descriptions.texts[each], each)
    best = [*first.values()][:_TEXTS]
    return ClassCard(
        summary.name,
        summary.texts,
        summary.sampled,
        "–" if math.isnan(summary.reward) else f"{summary.reward:.2f}".replace("-", "−"),
        _parts(summary.verdicts),
        tuple(
            ShownText(
                descriptions.texts[each],
                f"{descriptions.rewards[each]:.2f}".replace("-", "−"),
                int(descriptions.times[each]),
                prompt(descriptions.questions[descriptions.question_of[each]], summary.name).strip(),
                verdict_name(descriptions, each),
                "" if descriptions.inspection is None else descriptions.inspection.attributes[each],
            )
            for each in best
        ),
        pictures,
    )


def _remarks(descriptions: Descriptions) -> Iterable[str]:
    if descriptions.inspection is None:
        yield "Nobody has inspected these descriptions: run headspan describe inspect."
    if cut := int(descriptions.cut.sum()):
        yield (
            f"{counted(cut, 'description')} of {len(descriptions.texts):,} filled the context of the vision-language "
            "model, so that their ends may have been cut."
        )
    if unfinished := int((~descriptions.ended).sum()):
        yield (
            f"{counted(unfinished, 'description')} of {len(descriptions.texts):,} reached the largest number of tokens "
            "before the language model ended them."
        )
    if (more := len(descriptions.classes) - _CLASSES) > 0:
        yield f"{more:,} more of the classes are in the explorer."
