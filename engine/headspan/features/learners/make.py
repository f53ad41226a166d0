"""Make a learner by its name."""

from __future__ import annotations

from typing import Any

from headspan.errors import SettingsError
from headspan.features.learners.aligned import Aligned
from headspan.features.learners.batch_topk import BatchTopK
from headspan.features.learners.group_sparse import GroupSparse
from headspan.features.learners.kinds import LEARNERS
from headspan.features.learners.learner import Learner
from headspan.features.learners.matching_pursuit import MatchingPursuit
from headspan.features.learners.matryoshka import Matryoshka
from headspan.features.learners.non_negative import NonNegative
from headspan.features.learners.settings import Settings, settings_of
from headspan.features.learners.topk import TopK

TYPES: dict[str, type[Learner]] = {
    learner.kind: learner
    for learner in (TopK, BatchTopK, Matryoshka, MatchingPursuit, GroupSparse, Aligned, NonNegative)
}


def make_learner(kind: str, width: int, **settings: Any) -> Learner:
    """A learner of vectors of `width` numbers, with random weights drawn by torch's generator of the CPU.

    What is not set has its published default; the learner's `settings` say all of them.
    """
    found = learner_settings(kind, width, **settings)
    return TYPES[kind].made(found)


def learner_settings(kind: str, width: int, **settings: Any) -> Settings:
    """The settings of a learner, with the published defaults of those that are not given.

    Raises SettingsError for unusable ones.
    """
    if kind not in TYPES:
        raise SettingsError(f"there is no learner {kind!r}; choose one of {', '.join(LEARNERS)}")
    return settings_of(TYPES[kind].settings_type, {"width": width, **settings})
