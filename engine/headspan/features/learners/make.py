"""Make a learner by its name."""

from __future__ import annotations

from typing import Any

from headspan.errors import SettingsError
from headspan.features.learners.batch_topk import BatchTopK
from headspan.features.learners.kinds import LEARNERS
from headspan.features.learners.learner import Learner
from headspan.features.learners.settings import settings_of
from headspan.features.learners.topk import TopK

_TYPES: tuple[type[Learner], ...] = (TopK, BatchTopK)


def make_learner(kind: str, width: int, **settings: Any) -> Learner:
    """A learner of vectors of `width` numbers, with random weights drawn by torch's generator of the CPU.

    What is not set has its published default; the learner's `settings` say all of them.
    """
    if kind not in LEARNERS:
        raise SettingsError(f"there is no learner {kind!r}; choose one of {', '.join(LEARNERS)}")
    made = next(learner for learner in _TYPES if learner.kind == kind)
    return made(settings_of(made.settings_type, {"width": width, **settings}))
