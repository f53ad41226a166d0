"""Groups of a store's images by a value of their samples' metadata, such as `race` or `background`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from headspan.errors import SettingsError, counted, shortened
from headspan.store.reader import Store
from headspan.tasks.task import Task

# An image whose metadata lack the key.
NO_GROUP = -1


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ImageGroups:
    """The group of each image by one key of the metadata."""

    key: str
    # In alphabetical order.
    names: tuple[str, ...]
    # Places in `names`, or NO_GROUP.
    of: Int[np.ndarray, " images"]

    def __repr__(self) -> str:
        return f"ImageGroups({self.key!r}: {shortened(', '.join(self.names), 60)})"

    @property
    def members(self) -> Bool[np.ndarray, "group images"]:
        """Which images belong to each group."""
        members: Bool[np.ndarray, "group images"] = self.of == np.arange(len(self.names))[:, None]
        return members


def image_groups(store: Store, task: Task) -> tuple[ImageGroups, ...]:
    """The groups of a store's images by each key of `task.groups`; values listed in `task.merged` are one group.

    A value is a text, a number or a boolean; numbers and booleans are spelled as in JSON. Raises SettingsError if the
    task names no key, if no image has a key, if a value is a list or an object, or if `merged` lists a value twice.
    """
    if not task.groups:
        raise SettingsError(
            f'task {task.name}: names no groups of images; give groups = ["KEY"], a key of the metadata'
        )
    merged = _merged_values(task)
    metadata = [_parsed(text) for text in store.samples(columns=["metadata"])["metadata"].to_pylist()]
    return tuple(_groups(store, task, key, metadata, merged) for key in task.groups)


def _merged_values(task: Task) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, values in task.merged.items():
        for value in values:
            if found.setdefault(value, name) != name:
                raise SettingsError(
                    f"task {task.name}: merged lists {value!r} under {found[value]!r} and {name!r}; keep one of them"
                )
    return found


def _groups(
    store: Store, task: Task, key: str, metadata: list[dict[str, Any]], merged: Mapping[str, str]
) -> ImageGroups:
    values = [_spelled(store, key, known.get(key)) for known in metadata]
    named = [None if value is None else merged.get(value, value) for value in values]
    names = tuple(sorted({name for name in named if name is not None}))
    if not names:
        keys = sorted({name for known in metadata for name in known})
        has = f"they have {shortened(', '.join(keys), 200)}" if keys else "they have none"
        raise SettingsError(
            f"{store.path}: none of {counted(store.images, 'image')} has {key!r} in its metadata, which task "
            f"{task.name} asks for; {has}; name one of these, or make shards with {key!r} in their .json members"
        )
    places = {name: place for place, name in enumerate(names)}
    return ImageGroups(key, names, np.array([NO_GROUP if name is None else places[name] for name in named]))


def _parsed(text: str | None) -> dict[str, Any]:
    found = json.loads(text) if text else {}
    return found if isinstance(found, dict) else {}


def _spelled(store: Store, key: str, value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise SettingsError(
            f"{store.path}: {key!r} is {shortened(json.dumps(value), 60)} in an image's metadata, but a group is a "
            "text, a number or a boolean; name another key"
        )
    return value if value is None or isinstance(value, str) else json.dumps(value)
