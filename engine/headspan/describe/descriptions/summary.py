"""What descriptions amount to by class: how often they were sampled, their mean reward, verdicts and attributes.

Every sampled description counts, so a text that was sampled five times counts five times, and one that only the greedy
answer has does not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from headspan.describe.descriptions.result import UNDECIDED, VERDICTS, Descriptions

# A description without a verdict: its judges gave none, or not the same one.
UNDECIDED_NAME = "undecided"


@dataclass(frozen=True, slots=True)
class ClassSummary:
    """The descriptions of one class."""

    name: str
    # Different texts, and sampled descriptions.
    texts: int
    sampled: int
    # The mean reward of the sampled descriptions; NaN without any.
    reward: float
    # Sampled descriptions of each verdict; empty before an inspection.
    verdicts: dict[str, int]
    # The indices of its descriptions by falling reward.
    best: Int64[np.ndarray, " description"]


def class_summaries(descriptions: Descriptions) -> list[ClassSummary]:
    """The descriptions of every class, in the order of the classes."""
    return [_summary(descriptions, number) for number in range(len(descriptions.classes))]


def verdict_counts(
    descriptions: Descriptions, chosen: Bool[np.ndarray, " description"] | None = None
) -> dict[str, int]:
    """Sampled descriptions of each verdict and without one, of all or some; empty before an inspection."""
    if descriptions.inspection is None:
        return {}
    times = descriptions.times if chosen is None else descriptions.times * chosen
    numbers = [*enumerate(VERDICTS), (UNDECIDED, UNDECIDED_NAME)]
    return {name: int(times[descriptions.inspection.verdicts == number].sum()) for number, name in numbers}


def attribute_counts(descriptions: Descriptions) -> dict[str, int]:
    """Sampled descriptions that teach each attribute, the most frequent attribute first."""
    if descriptions.inspection is None:
        return {}
    found: Counter[str] = Counter()
    for attribute, times in zip(descriptions.inspection.attributes, descriptions.times.tolist(), strict=True):
        if attribute and times:
            found[attribute] += times
    return by_frequency(found)


def by_frequency(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts, the most frequent first, and equal ones in the order of their names."""
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def verdict_name(descriptions: Descriptions, description: int) -> str | None:
    """The verdict of a description in words; None before an inspection."""
    if descriptions.inspection is None:
        return None
    number = int(descriptions.inspection.verdicts[description])
    return UNDECIDED_NAME if number == UNDECIDED else VERDICTS[number]


def _summary(descriptions: Descriptions, number: int) -> ClassSummary:
    own = descriptions.class_of == number
    sampled = int(descriptions.times[own].sum())
    of_class = np.flatnonzero(own)
    return ClassSummary(
        descriptions.classes[number],
        len(of_class),
        sampled,
        float(descriptions.rewards[own] @ descriptions.times[own] / sampled) if sampled else math.nan,
        verdict_counts(descriptions, own),
        of_class[np.argsort(-descriptions.rewards[of_class], kind="stable")],
    )
