"""Descriptions of classes: their texts, rewards and inspection, as analyses return and stores keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int8, Int64

from headspan.concepts.answers import Record
from headspan.describe.rewards.target import Target
from headspan.errors import counted
from headspan.frames import Tabular
from headspan.store.lineage import Lineage

# What a description teaches about its class. The numbers are those of `verdicts`; -1 is a description that no judge
# gave a usable answer for, or whose votes are tied.
SPURIOUS, VISUAL, NON_VISUAL = range(3)
VERDICTS = ("spurious", "visual", "non-visual")
UNDECIDED = -1


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Inspection:
    """What judges say that each description teaches about its class."""

    # Names of the judges: language models, people, or `annotations` of the image world.
    judges: tuple[str, ...]
    # Each judge's vote: a number of VERDICTS, or UNDECIDED.
    votes: Int8[np.ndarray, "judge description"]
    # The majority of the votes.
    verdicts: Int8[np.ndarray, " description"]
    # The attribute that a description teaches, such as `colour` or `habitat`; empty for spurious ones.
    attributes: tuple[str, ...]
    # The attribute that each judge named for each description; no tuples if that is not known.
    named: tuple[tuple[str, ...], ...] = ()
    # Every question to a language model with its raw replies, as `concepts.answers.record` makes them.
    answers: tuple[Record, ...] = ()

    def __repr__(self) -> str:
        counts = (f"{int((self.verdicts == number).sum()):,} {name}" for number, name in enumerate(VERDICTS))
        undecided = int((self.verdicts == UNDECIDED).sum())
        more = f", {undecided:,} undecided" if undecided else ""
        return f"Inspection({', '.join(counts)}{more}, by {', '.join(self.judges)})"

    def named_by(self, judge: int) -> tuple[str, ...]:
        """The attribute that one judge named for each description; empty texts if that is not known."""
        return self.named[judge] if self.named else ("",) * len(self.attributes)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Descriptions(Tabular):
    """Descriptions that a language model wrote of classes. Equal texts of one class and question are one entry.

    Entries are in the order of classes, then of questions; those of one question begin with the most frequent.
    """

    run: str
    # The language model, as its user named it, and the checksum of its adapter; None if it is untrained.
    model: str
    adapter_sha256: str | None
    target: Target
    # The classes, where they come from (`task NAME`, `key KEY`), and the questions.
    classes: tuple[str, ...]
    classes_from: str
    questions: tuple[str, ...]
    texts: tuple[str, ...]
    class_of: Int64[np.ndarray, " description"]
    question_of: Int64[np.ndarray, " description"]
    # How often each was sampled, and whether it is the greedy answer too.
    times: Int64[np.ndarray, " description"]
    greedy: Bool[np.ndarray, " description"]
    rewards: Float32[np.ndarray, " description"]
    # Natural logarithm of the probability by the trained model, less that by the untrained one: its mean over sampled
    # descriptions is the KL divergence.
    log_ratios: Float32[np.ndarray, " description"]
    # Whether the vision-language model's context cut it, and whether the language model ended it by itself.
    cut: Bool[np.ndarray, " description"]
    ended: Bool[np.ndarray, " description"]
    # Figures such as `reward`, `kl`, `distinct_1`, `zero_shot` and `zero_shot_chance`; see `writing.quality`.
    quality: Mapping[str, float] = field(default_factory=dict)
    # How the adapter was trained, and its log: step, reward, kl, length, distinct_1 and others by name.
    training: Mapping[str, Any] = field(default_factory=dict)
    log: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    inspection: Inspection | None = None
    # Rows of a few images of each class, which pages show; -1 where a class has fewer.
    class_rows: Int64[np.ndarray, "class shown"] | None = None
    # What choosing the best of `best_of` samples of the untrained model writes: one text for each prompt, in the order
    # of classes, then of questions, and its reward. 0 and no texts if the untrained model was left out.
    best_of: int = 0
    best_texts: tuple[str, ...] = ()
    best_rewards: Float32[np.ndarray, " prompt"] | None = None
    seed: int = 0
    lineage: Lineage | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return (
            f"Descriptions({self.run!r}: {counted(len(self.texts), 'text')} of {len(self.classes)} classes by "
            f"{self.model})"
        )

    def __len__(self) -> int:
        return len(self.texts)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {
            "class": [self.classes[each] for each in self.class_of.tolist()],
            "question": [self.questions[each] for each in self.question_of.tolist()],
            "text": self.texts,
            "reward": self.rewards.astype(float).tolist(),
            "times": self.times.tolist(),
            "greedy": self.greedy.tolist(),
            "log_ratio": self.log_ratios.astype(float).tolist(),
            "cut": self.cut.tolist(),
            "ended": self.ended.tolist(),
        }
        if self.inspection is not None:
            verdicts = self.inspection.verdicts.tolist()
            columns["verdict"] = [None if each == UNDECIDED else VERDICTS[each] for each in verdicts]
            columns["attribute"] = [each or None for each in self.inspection.attributes]
        return columns
