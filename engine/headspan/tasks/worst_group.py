"""Accuracy of groups of images, such as waterbirds on land, and of the worst of them.

A group is a class together with a value of each key of the task's `groups`, such as `background`. A model that names
classes by a cue that usually goes with them fails where it does not, which the mean over all images may hide.

Source: Sagawa, Koh, Hashimoto, Liang, "Distributionally Robust Neural Networks", ICLR 2020, who made Waterbirds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.classification import task_classes
from headspan.tasks.merged_groups import merged_groups
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, class_truths
from headspan.tasks.zero_shot import Classes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WorstGroup:
    """The evaluation of a task of metric `worst_group`. Items are images; outcomes are the classes named for them.

    Figures are the accuracy of the worst group, of all images that have a group, the mean over groups, and every
    group's, by the name of the class and the values of the metadata: `waterbird, land`.
    """

    task: Task
    classes: Classes
    # The true class of each image; -1 where it is not known.
    truths: Int[np.ndarray, " images"]
    # The names of the groups that have an image, and the group of each image; -1 where it has none.
    names: tuple[str, ...]
    groups: Int[np.ndarray, " images"]

    headline = "worst_group"
    higher_is_better = True

    @classmethod
    def of(
        cls,
        task: Task,
        store: Store,
        on_progress: Listener = ignore,
        *,
        weights: str | Path | None = None,
        images: Images | None = None,
    ) -> WorstGroup:
        """The task on the images of a store, or on some.

        Raises SettingsError if no image has both a class and a value of every key of the task's `groups`, and the
        errors of `class_truths`, `merged_groups` and `task_classes`.
        """
        # First, since they take no model.
        truths = class_truths(store, task, on_progress, images)
        by_key = [merged_groups(task, store, key, images) for key in task.groups]
        every = np.stack([truths, *(each.numbers for each in by_key)], axis=1)
        known = (every != UNKNOWN).all(axis=1)
        if not known.any():
            raise SettingsError(
                f"{store.path}: none of {counted(len(truths), 'image')} has both a class and {', '.join(task.groups)}, "
                f"which task {task.name} needs; write shards with both"
            )
        found, numbers = np.unique(every[known], axis=0, return_inverse=True)
        groups = np.full(len(truths), UNKNOWN)
        groups[known] = numbers.ravel()
        values = [[each.names[at] for each, at in zip(by_key, places, strict=True)] for _, *places in found.tolist()]
        names = tuple(", ".join([task.classes[own[0]], *each]) for own, each in zip(found, values, strict=True))
        return cls(task, task_classes(task, store, on_progress, weights=weights), truths, names, groups)

    def __repr__(self) -> str:
        return f"WorstGroup({self.task.name}: {counted(sum(self.sizes.values()), 'image')}, {len(self.names)} groups)"

    def outcomes(self, embeddings: Float32[np.ndarray, "images joint"]) -> Int[np.ndarray, " images"]:
        """The number of the class that is nearest to each embedding."""
        return (embeddings @ self.classes.vectors.T).argmax(axis=1)

    def figures(self, outcomes: Int[np.ndarray, " images"]) -> dict[str, float]:
        """The worst group's accuracy, the accuracy over all images, the mean over groups, and every group's."""
        right = self._members @ self.correct(outcomes).astype(np.float64)
        sizes = self._members.sum(axis=1)
        each = right / sizes
        return {
            self.headline: float(each.min()),
            "accuracy": float(right.sum() / sizes.sum()),
            "mean_group": float(each.mean()),
            **dict(zip(self.names, each.tolist(), strict=True)),
        }

    def resampled(
        self, outcomes: Int[np.ndarray, " images"], counts: Float32[np.ndarray, "draw images"]
    ) -> Float64[np.ndarray, " draw"]:
        """The worst group's accuracy if image i occurs `counts[draw, i]` times.

        Groups that a draw leaves out are not counted.
        """
        members = self._members.astype(np.float32)
        sizes = (counts @ members.T).astype(np.float64)
        right = (counts @ (members * self.correct(outcomes)).T).astype(np.float64)
        each = np.where(sizes > 0, right / np.maximum(sizes, 1), np.inf)
        worst: Float64[np.ndarray, " draw"] = each.min(axis=1)
        return worst

    def correct(self, outcomes: Int[np.ndarray, " images"]) -> Bool[np.ndarray, " images"]:
        """Whether the right class is named; False for images without a class."""
        right: Bool[np.ndarray, " images"] = (outcomes == self.truths) & (self.truths != UNKNOWN)
        return right

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images of each group."""
        return dict(zip(self.names, self._members.sum(axis=1).tolist(), strict=True))

    @property
    def _members(self) -> Bool[np.ndarray, "group images"]:
        members: Bool[np.ndarray, "group images"] = self.groups == np.arange(len(self.names))[:, None]
        return members
