"""Zero-shot classification of a store's images, scored by accuracy.

Source: Radford et al., ICML 2021: an image is of the class whose vector has the largest cosine with its embedding.
Class vectors are those of `zero_shot.embed_classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, class_truths
from headspan.tasks.zero_shot import Classes, embed_classes

# Images that are compared with all classes at once: 16 MB for 1,000 classes.
_AT_ONCE = 4096


def task_classes(
    task: Task, store: Store, on_progress: Listener = ignore, *, weights: str | Path | None = None
) -> Classes:
    """The classes of a task with their vectors, by the text tower of the store's model.

    Names may repeat, as two of ImageNet's do. Raises SettingsError if the task has no classes or no templates, and the
    errors of `text_vectors`.
    """
    if not (task.classes and task.templates):
        raise SettingsError(f"task {task.name}: has no {'templates' if task.classes else 'classes'}; declare them")
    prompts = {
        f"{number}": [template.replace("{c}", name) for template in task.templates]
        for number, name in enumerate(task.classes)
    }
    found = embed_classes(store, {task.name: prompts}, on_progress, weights=weights)[task.name]
    return Classes(task.classes, found.vectors)


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Classification:
    """A classification task on a store. Its items are the images whose class is known, in the store's order.

    `outcomes` are the numbers of the classes that the model names. Figures: `accuracy`; `mean_per_class`, the mean of
    the classes' accuracies; and `chance`, the accuracy if the most common class were named for every image.
    """

    task: Task
    classes: Classes
    # The number of each image's class; -1 where it is not known.
    truths: Int64[np.ndarray, " images"]

    headline = "accuracy"
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
    ) -> Classification:
        """The task on the images of a store, or on some. Raises as `class_truths` and `task_classes` do."""
        # First, since it takes no model.
        truths = class_truths(store, task, on_progress, images)
        return cls(task, task_classes(task, store, on_progress, weights=weights), truths)

    def __repr__(self) -> str:
        return f"Classification({self.task.name}: {counted(self.items, 'image')}, {len(self.classes.names):,} classes)"

    @property
    def items(self) -> int:
        """The number of images whose class is known."""
        return int((self.truths != UNKNOWN).sum())

    @property
    def chance(self) -> float:
        """The accuracy if the most common class were named for every image."""
        return float(np.bincount(self._known()).max() / self.items)

    def outcomes(self, embeddings: Float32[np.ndarray, "images joint"]) -> Int64[np.ndarray, " item"]:
        """The number of the class named for each image whose class is known; all images' embeddings come in."""
        known = np.flatnonzero(self.truths != UNKNOWN)
        assert len(embeddings) == len(self.truths), "the embeddings are those of the evaluation's images"
        named = np.empty(len(known), np.int64)
        for first in range(0, len(known), _AT_ONCE):
            some = known[first : first + _AT_ONCE]
            named[first : first + _AT_ONCE] = (embeddings[some] @ self.classes.vectors.T).argmax(axis=1)
        return named

    def correct(self, outcomes: Int64[np.ndarray, " item"]) -> Bool[np.ndarray, " item"]:
        """Whether each image was named correctly."""
        return np.asarray(outcomes == self._known())

    def figures(self, outcomes: Int64[np.ndarray, " item"]) -> Mapping[str, float]:
        """Accuracy, mean accuracy of the classes that have images, and the share of the most common class."""
        per_class = self.per_class(outcomes)
        return {
            "accuracy": float(self.correct(outcomes).mean()),
            "mean_per_class": float(np.nanmean(per_class)),
            "chance": self.chance,
        }

    def per_class(self, outcomes: Int64[np.ndarray, " item"]) -> Float64[np.ndarray, " class"]:
        """The accuracy on the images of each class; NaN for a class without images."""
        known, count = self._known(), len(self.classes.names)
        images = np.bincount(known, minlength=count)
        right = np.bincount(known[self.correct(outcomes)], minlength=count)
        return np.divide(right, images, out=np.full(count, np.nan), where=images > 0)

    def resampled(
        self, outcomes: Int64[np.ndarray, " item"], counts: Float32[np.ndarray, "draw item"]
    ) -> Float64[np.ndarray, " draw"]:
        """The accuracy if image i occurs `counts[draw, i]` times, for each draw."""
        right = counts @ self.correct(outcomes).astype(np.float32)
        return np.asarray(right / counts.sum(axis=1), np.float64)

    def _known(self) -> Int64[np.ndarray, " item"]:
        return self.truths[self.truths != UNKNOWN]
