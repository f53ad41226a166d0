"""Groups of images by one key of their metadata, with the values that a task counts as one group."""

from __future__ import annotations

import numpy as np

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.tasks.task import Task
from headspan.tasks.truths import UNKNOWN, Groups, image_groups


def merged_groups(task: Task, store: Store, key: str, images: Images | None = None) -> Groups:
    """The groups of a store's images, or of some, by `key`; values that `task.merged` lists under one name are one.

    Raises SettingsError if no image has the key, or if `task.merged` lists a value twice.
    """
    merged: dict[str, str] = {}
    for name, values in task.merged.items():
        for value in values:
            if merged.setdefault(value, name) != name:
                raise SettingsError(
                    f"task {task.name}: merged lists {value!r} under {merged[value]!r} and {name!r}; keep one of them"
                )
    groups = image_groups(store, [key], images)
    renamed = [merged.get(name, name) for name in groups.names]
    names = tuple(sorted(set(renamed)))
    places = np.array([names.index(name) for name in renamed])
    return Groups(names, np.where(groups.numbers == UNKNOWN, UNKNOWN, places[groups.numbers]))
