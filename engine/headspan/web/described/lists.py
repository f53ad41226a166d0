"""Choose and order descriptions: by class, question, verdict, attribute and words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Int64

from headspan.describe.descriptions.result import NON_VISUAL, SPURIOUS, UNDECIDED, VISUAL, Descriptions
from headspan.web.refusals import Missing


class Verdict(StrEnum):
    """What judges say of a description."""

    SPURIOUS = "spurious"
    VISUAL = "visual"
    NON_VISUAL = "non-visual"
    UNDECIDED = "undecided"


class Sort(StrEnum):
    """What a list of descriptions is ordered by."""

    REWARD = "reward"
    TIMES = "times"
    CLASS = "class"
    LOG_RATIO = "log_ratio"


_NUMBERS = {
    Verdict.SPURIOUS: SPURIOUS,
    Verdict.VISUAL: VISUAL,
    Verdict.NON_VISUAL: NON_VISUAL,
    Verdict.UNDECIDED: UNDECIDED,
}


@dataclass(frozen=True)
class Asking:
    """What a request asks of descriptions. Everything that is given must hold."""

    classes: tuple[str, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    # The number of a question, from 0.
    question: int | None = None
    attribute: str = ""
    words: str = ""
    # Those that the language model gave without sampling.
    greedy: bool = False


def chosen_descriptions(
    descriptions: Descriptions, asking: Asking, sort: Sort, descending: bool
) -> Int64[np.ndarray, " chosen"]:
    """The numbers of the descriptions that pass, in order; equal ones by falling reward.

    Raises Missing for a class or a question that the run does not have.
    """
    passed = np.ones(len(descriptions.texts), bool)
    if asking.classes:
        passed &= np.isin(descriptions.class_of, [_class_number(descriptions, name) for name in asking.classes])
    if asking.question is not None:
        if asking.question >= len(descriptions.questions):
            raise Missing(
                f"the run {descriptions.run} has no question {asking.question}; questions go from 0 to "
                f"{len(descriptions.questions) - 1}"
            )
        passed &= descriptions.question_of == asking.question
    if asking.greedy:
        passed &= descriptions.greedy
    if asking.verdicts or asking.attribute:
        passed &= _inspected(descriptions, asking)
    if words := asking.words.casefold().split():
        passed &= _with_words(descriptions, words)
    found = np.flatnonzero(passed)
    found = found[np.argsort(-descriptions.rewards[found], kind="stable")]
    keys = {
        Sort.REWARD: descriptions.rewards,
        Sort.TIMES: descriptions.times,
        Sort.CLASS: descriptions.class_of,
        Sort.LOG_RATIO: descriptions.log_ratios,
    }[sort][found]
    return found[np.argsort(-keys if descending else keys, kind="stable")]


def _class_number(descriptions: Descriptions, name: str) -> int:
    if name not in descriptions.classes:
        raise Missing(
            f"the run {descriptions.run} has no class {name[:60]!r}; choose one of its {len(descriptions.classes)}"
        )
    return descriptions.classes.index(name)


def _inspected(descriptions: Descriptions, asking: Asking) -> Bool[np.ndarray, " description"]:
    inspection = descriptions.inspection
    passed = np.ones(len(descriptions.texts), bool)
    if inspection is None:
        # Nothing has a verdict, so none is the one that is asked for.
        return ~passed
    if asking.verdicts:
        passed &= np.isin(inspection.verdicts, [_NUMBERS[each] for each in asking.verdicts])
    if asking.attribute:
        passed &= np.array([each == asking.attribute for each in inspection.attributes], bool)
    return passed


def _with_words(descriptions: Descriptions, words: list[str]) -> Bool[np.ndarray, " description"]:
    """The descriptions whose text or class has every word."""
    names = [name.casefold() for name in descriptions.classes]
    return np.fromiter(
        (
            all(word in text.casefold() or word in names[number] for word in words)
            for text, number in zip(descriptions.texts, descriptions.class_of.tolist(), strict=True)
        ),
        bool,
        len(descriptions.texts),
    )
