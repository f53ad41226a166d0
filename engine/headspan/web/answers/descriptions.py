"""Answers about the descriptions that a language model wrote of classes."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number
from headspan.web.answers.stores import Fact


class DescriptionRow(Answer):
    """One description; equal texts of a class and question are one."""

    # Its number in the run.
    description: int
    text: str
    class_name: str
    # The question as it was asked, with the name of the class.
    question: str
    # How often it was sampled, and whether it is the greedy answer too.
    times: int
    greedy: bool
    reward: Number
    # Logarithm of the probability by the trained model, less that by the untrained one, in nats.
    log_ratio: Number
    # Whether the vision-language model's context cut it, and whether the language model ended it by itself.
    cut: bool
    ended: bool
    # "spurious", "visual", "non-visual" or "undecided"; null before an inspection.
    verdict: str | None
    # What it teaches, such as "colour"; empty for spurious ones.
    attribute: str
    # The verdict of each judge.
    votes: dict[str, str]


class DescribedClass(Answer):
    """The descriptions of a class, as numbers, and the one with the highest reward."""

    name: str
    # Rows of some of its images, and what `/images` lists all of them by; empty where that is not known.
    images: list[int]
    images_query: dict[str, str]
    texts: int
    sampled: int
    # Mean over the sampled descriptions.
    reward: Number
    # Sampled descriptions of each verdict; empty before an inspection.
    verdicts: dict[str, int]
    best: DescriptionRow | None


class QualityValue(Answer):
    """A figure with the ends of its 95 % interval; null where it was not measured."""

    value: Number
    low: Number
    high: Number


class QualityRow(Answer):
    """A figure of the descriptions, beside that of what they are compared with."""

    name: str
    hint: str
    # Whether it is a share, from 0 to 1.
    share: bool
    values: list[QualityValue]


class Quality(Answer):
    """Figures of descriptions: a column each for the run and its baselines."""

    columns: list[str]
    rows: list[QualityRow]


class JudgePair(Answer):
    """How two judges agree on the texts that both judged."""

    judges: tuple[str, str]
    texts: int
    # The share of equal verdicts, and Cohen's kappa.
    same: Number
    kappa: Number


class DescriptionRun(Answer):
    """A run in the list of runs, with what its texts were rewarded for."""

    run: str
    model: str
    # Whether the language model was trained; untrained ones are a baseline.
    trained: bool
    target: str
    # The heads through which images rewarded texts; empty for the whole embedding.
    heads: list[HeadName]
    # Why the run cannot be read, in one sentence; null if it can be.
    problem: str | None


class Descriptions(Answer):
    """A run of descriptions. Without any run, `run` is null."""

    store: str
    run: str | None
    runs: list[DescriptionRun]
    model: str
    trained: bool
    target: str
    heads: list[HeadName]
    # Different texts, and sampled descriptions.
    texts: int
    sampled: int
    classes: list[DescribedClass]
    questions: list[str]
    # Names of the judges, sampled descriptions of each verdict, and those that teach each attribute.
    judges: list[str]
    verdicts: dict[str, int]
    attributes: dict[str, int]
    # The 95 % interval of each verdict's share, which draws whole classes; and how every two judges agree.
    shares: dict[str, tuple[Number, Number]]
    agreement: list[JudgePair]
    quality: Quality
    # The log of the training: numbers by name, one for each logged step.
    log: dict[str, list[Number]]
    facts: list[Fact]
    notices: list[str]


class DescriptionList(Answer):
    """Descriptions that pass a filter, one page of them."""

    store: str
    run: str
    total: int
    offset: int
    descriptions: list[DescriptionRow]
