"""Make the evaluation of a task on the images of a store, by the task's metric."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.evaluation import Evaluation
from headspan.tasks.task import Task

if TYPE_CHECKING:
    from headspan.tasks.segmentation import Segmentation

# The module and the class of each metric. Each class has a method `of(task, store, on_progress, weights=…, images=…)`.
_EVALUATIONS = {
    "accuracy": ("classification", "Classification"),
    "worst_group": ("worst_group", "WorstGroup"),
    "retrieval": ("retrieval", "Retrieval"),
    "skew": ("skew", "Skew"),
    "segmentation": ("segmentation", "Segmentation"),
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
    if task.metric not in _EVALUATIONS:
        raise SettingsError(
            f"task {task.name}: metric {task.metric!r} does not exist; metrics: {', '.join(_EVALUATIONS)}"
        )
    module, name = _EVALUATIONS[task.metric]
    # Each metric is imported when a task asks for it.
    metric: Any = getattr(import_module(f"headspan.tasks.{module}"), name)
    evaluation: Evaluation | Segmentation = metric.of(task, store, on_progress, weights=weights, images=images)
    return evaluation
