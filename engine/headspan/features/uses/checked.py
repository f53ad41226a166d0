"""Check that a dictionary, its scores and a store belong together before the dictionary is used."""

from __future__ import annotations

from headspan.errors import SettingsError
from headspan.features.learners.learner import Learner
from headspan.features.pairs.space import EMBEDDING
from headspan.features.scores.result import FeatureScores
from headspan.features.training.dictionary import Dictionary
from headspan.features.uses.filtered import RESIDUALS
from headspan.store.reader import Store
from headspan.tasks.task import Task


def checked_learner(store: Store, dictionary: Dictionary, scores: FeatureScores, residual: str) -> Learner:
    """The dictionary's learner.

    Raises SettingsError if the dictionary is not of the embeddings of the store's model, if it has no decoder, if the
    scores are those of another dictionary, or if `residual` is not one of RESIDUALS.
    """
    if residual not in RESIDUALS:
        raise SettingsError(f"residual {residual!r}: give one of {', '.join(RESIDUALS)}")
    if dictionary.space.kind != EMBEDDING:
        raise SettingsError(
            f"{dictionary.folder}: is of {dictionary.space}, but uses change embeddings; train a dictionary of the "
            f"space {EMBEDDING}"
        )
    dictionary.refuse_other(store)
    if not dictionary.learner.decodes:
        raise SettingsError(
            f"{dictionary.folder}: the codes of its learner {dictionary.kind} cannot be turned back into vectors, "
            "which taking features out of vectors needs; train another learner"
        )
    if scores.dictionary_sha256 != dictionary.sha256 or len(scores.class_by_interval) != dictionary.features:
        raise SettingsError(
            f"{dictionary.folder}: the scores of run {scores.run!r} are of another dictionary ({scores.dictionary}); "
            "score this one"
        )
    return dictionary.learner


def check_classes(task: Task, use: str) -> None:
    """Raise SettingsError if the task has no classes; `use` says what needs them."""
    if task.metric not in ("accuracy", "worst_group"):
        raise SettingsError(
            f"task {task.name}: has metric {task.metric}; {use} needs classes, so give a task of metric accuracy or "
            "worst_group"
        )
