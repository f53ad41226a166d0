"""The tasks of a study, each on the images of a store: its own, or another store of the same model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.config import as_ranges
from headspan.errors import SettingsError
from headspan.events import NOTE, Listener, Progress
from headspan.prune.studies.study_plan import HeadSet
from headspan.store.identity import MODEL_KEYS, SIZE_KEYS, differences
from headspan.store.reader import Store
from headspan.tasks.evaluations import evaluation_of
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task

# A task, or its name, file or folder; alone, or with the store of its images.
TaskOf = str | Path | Task | tuple[str | Path | Task, Store | str | Path]


@dataclass(frozen=True, slots=True)
class TaskOn:
    """A task on the images of a store."""

    # As the study calls it: the task's name, with the store's if the study has the task on several stores.
    name: str
    store: Store
    # An `Evaluation`, or a `Segmentation`, which is scored from maps.
    evaluation: Any

    @property
    def task(self) -> Task:
        """The task."""
        task: Task = self.evaluation.task
        return task

    @property
    def from_maps(self) -> bool:
        """Whether the task is scored from maps of the remaining heads, which embeddings do not have."""
        return hasattr(self.evaluation, "outcomes_without")


def tasks_on_stores(
    store: Store,
    tasks: Sequence[TaskOf],
    mode: str,
    sets: Sequence[HeadSet],
    on_progress: Listener,
    weights: str | Path | None,
) -> tuple[list[TaskOn], list[str]]:
    """The tasks with their evaluations, and what their evaluations remark, such as images without a class.

    Raises SettingsError if there is no task, if a task is given twice, if it is on a store of another model or without
    the heads that are to be pruned, if it is scored from maps and the mode is total, and the errors of `read_task` and
    `evaluation_of`.
    """
    if not tasks:
        raise SettingsError("a study needs at least one task; name a shipped one, a TOML file or a folder")
    stores = {store.path.resolve(): store}
    found: list[tuple[Task, Store]] = []
    for each in tasks:
        given, other = each if isinstance(each, tuple) else (each, store)
        task = given if isinstance(given, Task) else read_task(given)
        opened = other if isinstance(other, Store) else Store(other)
        on = stores.setdefault(opened.path.resolve(), opened)
        if any(task.name == known.name and on is its for known, its in found):
            raise SettingsError(f"task {task.name}: is given twice for {on.path}; give it once")
        if on is not store:
            _check(store, on, mode, sets)
        if not on.images:
            raise SettingsError(f"{on.path}: shows no images for task {task.name}; finish its precompute run first")
        found.append((task, on))
    names = [task.name for task, _ in found]
    remarks: list[str] = []

    def listen(event: Progress) -> None:
        # Remarks belong to the result, so that they are saved with it.
        if event.stage == NOTE:
            remarks.append(event.note)
        else:
            on_progress(event)

    result = []
    for task, on in found:
        name = task.name if names.count(task.name) == 1 else f"{task.name} on {on.path.name}"
        result.append(TaskOn(name, on, evaluation_of(task, on, listen, weights=weights)))
        if mode == "total" and result[-1].from_maps:
            raise SettingsError(
                f"task {task.name}: metric {task.metric} is scored from the stored contributions of patches, so it has "
                "a direct effect only; leave it out of the total effect"
            )
    return result, remarks


def _check(store: Store, other: Store, mode: str, sets: Sequence[HeadSet]) -> None:
    """Raise SettingsError if `other` is of another model than `store`, or lacks heads that are to be pruned."""
    for what, own, its in differences(store.attributes, other.attributes, (*MODEL_KEYS, *SIZE_KEYS)):
        raise SettingsError(
            f"{other.path}: is a store of another model than {store.path} ({what} {its}, not {own}); precompute the "
            "task's images with the same model"
        )
    wanted = {layer for each in sets for layer, _ in each.heads}
    if mode == "direct" and (missing := sorted(wanted - set(other.layers))):
        raise SettingsError(
            f"{other.path}: holds the heads of layers {as_ranges(other.layers)}, and the study prunes heads of layers "
            f"{as_ranges(missing)}; precompute the task's images with --layers {as_ranges(store.layers)}"
        )
