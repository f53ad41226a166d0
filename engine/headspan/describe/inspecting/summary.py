"""Summarise an inspection: how much of what was written is spurious, visual or non-visual, and how judges agree.

Shares are of sampled descriptions: a text that was sampled twice counts twice. Descriptions of one class are not
independent, since a trained model repeats itself. So the 95 % intervals of all classes together draw whole classes, and
those of one class draw its questions (percentile bootstrap).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Int8, Int64

from headspan.concepts.agreement import Agreement, agree
from headspan.describe.descriptions.result import SPURIOUS, UNDECIDED, VERDICTS, Descriptions, Inspection
from headspan.describe.descriptions.summary import UNDECIDED_NAME, by_frequency
from headspan.describe.inspecting.ballot import described_texts
from headspan.describe.inspecting.verdict import Described
from headspan.errors import SettingsError, counted, percent
from headspan.frames import Tabular
from headspan.prune.studies.statistics import SAMPLES, Interval, interval, resampling_counts

# The shares of a summary: of each verdict, and of descriptions without one.
SHARES = (*VERDICTS, UNDECIDED_NAME)
Verdicts = Int8[np.ndarray, " description"]
Numbers = Int64[np.ndarray, " description"]


@dataclass(frozen=True, slots=True)
class VerdictShares:
    """The shares of verdicts among the descriptions of one class, or of all."""

    # Different texts, greedy ones included, and how often they were sampled.
    texts: int
    times: int
    # By the names in SHARES. They sum to 1; an interval is NaN if there is only one class or question to draw from.
    shares: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class JudgePair:
    """How two judges agree on the texts that both judged."""

    first: str
    second: str
    # Of verdicts, with classes as clusters. Verdicts have no order, so only `same` and `kappa` mean anything.
    verdicts: Agreement
    # Of the texts for which both name an attribute, the share for which it is the same; NaN without any.
    same_attribute: float


@dataclass(frozen=True, slots=True, repr=False)
class InspectionSummary(Tabular):
    """The verdicts on the descriptions of a run. As a table it has a row for all classes, and one for each class."""

    run: str
    judges: tuple[str, ...]
    every: VerdictShares
    classes: Mapping[str, VerdictShares]
    # The same of all classes by the votes of each judge alone.
    by_judge: Mapping[str, VerdictShares]
    # For each verdict but spurious, how often each attribute was sampled, most frequent first.
    attributes: Mapping[str, Mapping[str, int]]
    agreement: tuple[JudgePair, ...]

    def __repr__(self) -> str:
        shares = ", ".join(f"{percent(each.value)} {name}" for name, each in self.every.shares.items() if each.value)
        return f"InspectionSummary({self.run!r}: {shares} of {counted(self.every.times, 'description')})"

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [(None, self.every), *self.classes.items()]
        columns: dict[str, list[Any]] = {
            "class": [name for name, _ in rows],
            "texts": [each.texts for _, each in rows],
            "times": [each.times for _, each in rows],
        }
        for name in SHARES:
            of_rows = [each.shares[name] for _, each in rows]
            columns[name] = [each.value for each in of_rows]
            columns[f"{name}_low"] = [each.low for each in of_rows]
            columns[f"{name}_high"] = [each.high for each in of_rows]
        return columns


def inspection_summary(descriptions: Descriptions, samples: int = SAMPLES, seed: int = 0) -> InspectionSummary:
    """Summarise the inspection of descriptions. Raises SettingsError if they have not been inspected.

    If nothing was sampled, the greedy descriptions count once each. `samples` and `seed` are those of the bootstrap.
    """
    inspection = inspected(descriptions)
    times = descriptions.times if descriptions.times.any() else descriptions.greedy.astype(np.int64)
    classes, questions = descriptions.class_of, descriptions.question_of
    of_all = classes if len(np.unique(classes)) > 1 else questions

    def shares(verdicts: Verdicts, clusters: Numbers, of: Bool[np.ndarray, " description"]) -> VerdictShares:
        texts = len(np.unique(numbers[of]))
        of = of & (times > 0)
        return _shares(texts, verdicts[of], times[of], clusters[of], samples, seed)

    numbers, whole = _first_places(descriptions), np.ones(len(classes), bool)
    sampled = [
        (VERDICTS[verdict], attribute, int(count))
        for verdict, attribute, count in zip(inspection.verdicts.tolist(), inspection.attributes, times, strict=True)
        if verdict > SPURIOUS
    ]
    return InspectionSummary(
        descriptions.run,
        inspection.judges,
        shares(inspection.verdicts, of_all, whole),
        {
            name: shares(inspection.verdicts, questions, classes == number)
            for number, name in enumerate(descriptions.classes)
        },
        {judge: shares(cast, of_all, whole) for judge, cast in zip(inspection.judges, inspection.votes, strict=True)},
        {name: _attributes(sampled, name) for name in VERDICTS[SPURIOUS + 1 :]},
        judge_agreement(descriptions, samples, seed),
    )


def inspected(descriptions: Descriptions) -> Inspection:
    """The inspection of descriptions. Raises SettingsError if they have none."""
    if descriptions.inspection is None:
        raise SettingsError(
            f"descriptions/{descriptions.run} are not inspected yet; run headspan describe inspect with a --judge, "
            "--human or --annotations"
        )
    return descriptions.inspection


def judge_agreement(descriptions: Descriptions, samples: int = SAMPLES, seed: int = 0) -> tuple[JudgePair, ...]:
    """How every two judges agree. Equal texts of a class count once. Raises SettingsError without an inspection."""
    inspection = inspected(descriptions)
    places = np.unique(_first_places(descriptions))
    return tuple(
        _pair(inspection, one, other, places, descriptions.class_of[places], samples, seed)
        for one, other in combinations(range(len(inspection.judges)), 2)
    )


def _first_places(descriptions: Descriptions) -> Numbers:
    """For each description, the place of the first one with the same class and text."""
    first_of: dict[Described, int] = {}
    return np.array(
        [first_of.setdefault(each, place) for place, each in enumerate(described_texts(descriptions))], np.int64
    )


def _pair(
    inspection: Inspection,
    one: int,
    other: int,
    places: Int64[np.ndarray, " text"],
    classes: Int64[np.ndarray, " text"],
    samples: int,
    seed: int,
) -> JudgePair:
    left, right = inspection.votes[one][places].astype(int), inspection.votes[other][places].astype(int)
    both = (left != UNDECIDED) & (right != UNDECIDED)
    teaching = places[(left > SPURIOUS) & (right > SPURIOUS)].tolist()
    by_one, by_other = inspection.named_by(one), inspection.named_by(other)
    same = [by_one[place] == by_other[place] for place in teaching if by_one[place] and by_other[place]]
    return JudgePair(
        inspection.judges[one],
        inspection.judges[other],
        agree(left[both], right[both], classes[both], samples, seed),
        float(np.mean(same)) if same else float("nan"),
    )


def _attributes(sampled: Sequence[tuple[str, str, int]], name: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for verdict, attribute, count in sampled:
        if verdict == name and count:
            found[attribute or "unnamed"] += count
    return by_frequency(found)


def _shares(
    texts: int, verdicts: Verdicts, times: Numbers, clusters: Numbers, samples: int, seed: int
) -> VerdictShares:
    """The shares among some sampled descriptions of so many texts, with intervals that draw whole clusters."""
    _, members = np.unique(clusters, return_inverse=True)
    drawn = int(members.max(initial=-1)) + 1
    if not drawn:
        nothing = Interval(float("nan"), float("nan"), float("nan"))
        return VerdictShares(texts, 0, dict.fromkeys(SHARES, nothing))
    counts = np.zeros((drawn, len(SHARES)))
    # The last column is of UNDECIDED, which is -1.
    np.add.at(counts, (members, verdicts), times)
    total = counts.sum(axis=0)
    values = total / total.sum()
    resampled = np.full((samples, len(SHARES)), np.nan)
    if drawn > 1:
        sums = np.concatenate([block @ counts for block in resampling_counts(drawn, samples, seed)])
        resampled = sums / sums.sum(axis=1, keepdims=True)
    shares = {
        name: interval(float(value), column) for name, value, column in zip(SHARES, values, resampled.T, strict=True)
    }
    return VerdictShares(texts, int(total.sum()), shares)
