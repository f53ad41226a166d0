"""Make the evaluation of a task on the images of a store, by the task's metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.classification import Classification
from headspan.tasks.evaluation import Evaluation
from headspan.tasks.retrieval import Retrieval
from headspan.tasks.segmentation import Segmentation
from headspan.tasks.skew import Skew
from headspan.tasks.task import Task
from headspan.tasks.worst_group import WorstGroup

# Each class has a method `of(task, store, on_progress, weights=…, images=…)`.
_METRICS: dict[str, Any] = {
    "accuracy": Classification,
    "worst_group": WorstGroup,
    "retrieval": Retrieval,
    "skew": Skew,
    "segmentation": Segmentation,
}


def evaluation_of(
    task: Task,
    store: Store,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    images: Images | None = None,
) -> Evaluation | Segmentation:
    """The evaluation of `task` on the images of `store`; its texts are embedded by the store's model.

    `weights` is as in `text_vectors`. `images`, as in `store.moments`, limits the evaluation to some images; the
    embeddings that it is given must be of these, in the store's order. Raises SettingsError if task and images do not
    belong together, such as classes without names, and the errors of `text_vectors`.
    """
    if task.metric not in _METRICS:
        raise SettingsError(f"task {task.name}: metric {task.metric!r} does not exist; metrics: {', '.join(_METRICS)}")
    found: Evaluation | Segmentation = _METRICS[task.metric].of(
        task, store, on_progress, weights=weights, images=images
    )
    return found
