"""The classes that descriptions are of, and the images of each.

Classes come from a task, which names the numbers of `.cls` members, or from the metadata: from a key such as
`class_name`, or a path of keys such as `objects.shape`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from headspan.errors import SettingsError, shortened
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images, usable_images
from headspan.tasks.factors import Factors
from headspan.tasks.task import Task
from headspan.tasks.truths import CLASS_NAME, UNKNOWN, class_truths


@dataclass(frozen=True, slots=True)
class DescribedClasses:
    """Names of classes, each with at least one image, and the class of each image of a store; -1 for none."""

    names: tuple[str, ...]
    numbers: Int64[np.ndarray, " image"]
    # What the classes were read from: `task NAME` or `key KEY`.
    source: str

    def __repr__(self) -> str:
        return f"DescribedClasses({len(self.names)}: {shortened(', '.join(self.names), 60)})"

    def images(self, number: int, most: int | None = None) -> Int64[np.ndarray, " image"]:
        """The indices of a class's images; of more than `most`, that many at equal distances in the store's order."""
        found = np.flatnonzero(self.numbers == number)
        if most is None or len(found) <= most:
            return found
        return found[np.arange(most) * len(found) // most]


def described_classes(
    store: Store,
    *,
    task: Task | None = None,
    key: str | None = None,
    names: Sequence[str] | None = None,
    images: Images | None = None,
    on_progress: Listener = ignore,
) -> DescribedClasses:
    """Find the classes of a store's images, by a task or by a key of the metadata.

    Args:
        store: The store.
        task: A task of metric accuracy or worst_group; its classes without images are left out, with a note.
        key: A key of the metadata, or a path such as `objects.shape`; by default `class_name`.
        names: Some of the classes only, in this order.
        images: Some images only, as in `Store.moments`.
        on_progress: A listener.

    Raises SettingsError if both `task` and `key` are given, if no image has a class, or if a named class has no images.
    """
    if task is not None and key is not None:
        raise SettingsError(f"classes come from task {task.name} or from the key {key!r}; give one of them")
    usable = np.zeros(store.images, bool)
    chosen = chosen_images(store, images)
    usable[chosen[usable_images(store, chosen)]] = True
    if task is not None:
        every: tuple[str, ...] = task.classes
        # One entry for each image of the store.
        numbers = class_truths(store, task, on_progress).copy()
    else:
        values = Factors(store, [key or CLASS_NAME]).values[key or CLASS_NAME]
        every = tuple(sorted({value for value in values if value is not None}))
        order = {value: number for number, value in enumerate(every)}
        numbers = np.array([UNKNOWN if value is None else order[value] for value in values], np.int64)
    numbers[~usable] = UNKNOWN
    kept = _kept(every, numbers, names, on_progress)
    to_kept = np.full(len(every) + 1, UNKNOWN, np.int64)
    to_kept[kept] = np.arange(len(kept))
    source = f"task {task.name}" if task is not None else f"key {key or CLASS_NAME}"
    return DescribedClasses(tuple(every[number] for number in kept), to_kept[numbers], source)


def _kept(
    every: Sequence[str],
    numbers: Int64[np.ndarray, " image"],
    names: Sequence[str] | None,
    on_progress: Listener,
) -> list[int]:
    """The numbers of the classes that are described, in their order."""
    counts = np.bincount(numbers[numbers != UNKNOWN], minlength=len(every))
    if names is None:
        empty = [name for name, count in zip(every, counts, strict=True) if not count]
        if len(empty) == len(every):
            raise SettingsError("no image has a class that could be described; choose other images or classes")
        if empty:
            on_progress(
                Progress(NOTE, 1, 1, f"classes without images, which are left out: {shortened(', '.join(empty), 200)}")
            )
        return [number for number, count in enumerate(counts) if count]
    found = []
    for name in dict.fromkeys(names):
        if name not in every or not counts[every.index(name)]:
            known = shortened(", ".join(each for each, count in zip(every, counts, strict=True) if count), 200)
            raise SettingsError(f"class {name!r} has no images; the classes with images are {known or 'none'}")
        found.append(every.index(name))
    if not found:
        raise SettingsError("the list of classes is empty; name at least one, or leave it out for all")
    return found
