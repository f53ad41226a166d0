"""What is known about the images of a store: their classes, and the groups that their metadata puts them in.

An image's class is the number of its `.cls` member. Without one, it is the number or the name that the metadata holds
under `class_name`, where headspan puts classes that Parquet files and lists give as text. A task whose classes lie
elsewhere says so by its setting `class_key`, such as `class_key = "y"`. A key may be a path: `objects.colour`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from headspan.errors import SettingsError, counted, shortened
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images, usable_images
from headspan.tasks.task import Task

# The key of the metadata that holds the name of a class.
CLASS_NAME = "class_name"
# The class or the group of an image that has none.
UNKNOWN = -1
# How many names a message lists.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of images by the values of one or several keys of their metadata."""

    # The values of a group, joined by `, ` if there are several keys; in alphabetical order.
    names: tuple[str, ...]
    # The number of each image's group; -1 if its metadata lacks a key.
    numbers: Int64[np.ndarray, " images"]


def class_truths(
    store: Store, task: Task, on_progress: Listener = ignore, images: Images | None = None
) -> Int64[np.ndarray, " images"]:
    """The number of each image's class among `task.classes`; -1 where it is not known.

    `on_progress` is told of images without a class, and of classes without images. Raises SettingsError if no image has
    a class, if a class's number has no name in the task, or if the name of a class is not one of the task's.
    """
    chosen = chosen_images(store, images)
    key = task.settings.get("class_key")
    if key is None:
        truths = _labels(store, chosen)
        without = np.flatnonzero(truths == UNKNOWN)
        if len(without):
            truths[without] = _from_metadata(store, task, chosen[without], CLASS_NAME)
    else:
        truths = _from_metadata(store, task, chosen, str(key))
    truths[~usable_images(store, chosen)] = UNKNOWN
    known = truths[truths != UNKNOWN]
    if not len(known):
        where = "`.cls` members with numbers" if key is None else f"the key {key!r} of the metadata"
        raise SettingsError(
            f"{store.path}: task {task.name} needs classes of images, but none of {counted(len(chosen), 'image')} has "
            f"one ({where}); write shards with classes, and precompute again"
        )
    _refuse_numbers_without_names(store, task, known)
    _note_gaps(task, truths, on_progress)
    return truths


def image_groups(store: Store, keys: Sequence[str], images: Images | None = None) -> Groups:
    """The group of each image by the values that its metadata holds under `keys`.

    Raises SettingsError if no image has metadata with all of these keys.
    """
    values = metadata_values(store, keys, images)
    complete = [None if None in each else ", ".join(map(str, each)) for each in values]
    names = tuple(sorted({name for name in complete if name is not None}))
    if not names:
        found = Counter(key for each in metadata_of_images(store, chosen_images(store, images)) for key in each)
        have = ", ".join(key for key, _ in found.most_common(_SHOWN)) or "none"
        raise SettingsError(
            f"{store.path}: no image's metadata has {' and '.join(map(repr, keys))}, which groups need; the metadata's "
            f"keys are {have}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    return Groups(names, np.array([UNKNOWN if name is None else numbers[name] for name in complete], np.int64))


def metadata_values(store: Store, keys: Sequence[str], images: Images | None = None) -> list[tuple[Any, ...]]:
    """The values that each image's metadata holds under `keys`, as `value_at` finds them; None for what it lacks."""
    metadata = metadata_of_images(store, chosen_images(store, images))
    return [tuple(value_at(each, key) for key in keys) for each in metadata]


def value_at(metadata: Mapping[str, Any], key: str) -> Any:
    """What metadata hold under a key, or under a path of keys with dots; None if they hold nothing there.

    In a list, the path goes on in its first entry, unless a number names another one: `objects.colour` is the colour of
    the first object.
    """
    if key in metadata:
        return metadata[key]
    found: Any = metadata
    for name in key.split("."):
        if isinstance(found, list):
            if name.isdecimal() and name.isascii():
                found = found[int(name)] if int(name) < len(found) else None
                continue
            found = found[0] if found else None
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def metadata_of_images(store: Store, chosen: np.ndarray) -> list[Mapping[str, Any]]:
    """The metadata of some images; empty where there is none, or where it is not a JSON object."""
    values = [_parsed(text) for text in _column(store, chosen, "metadata").to_pylist()]
    return [each if isinstance(each, dict) else {} for each in values]


def _parsed(text: str | None) -> Any:
    """Metadata from their JSON; None where there are none, or where Python cannot read them."""
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return None


def _column(store: Store, chosen: np.ndarray, name: str) -> pa.ChunkedArray:
    """A column of the samples of some images. All images are read in one go, which is faster than by index."""
    return store.samples(None if len(chosen) == store.images else chosen, [name])[name]


def _labels(store: Store, chosen: np.ndarray) -> Int64[np.ndarray, " images"]:
    """The numbers of `.cls` members. A negative one, by which some data sets mark images without a class, is -1."""
    numbers = _column(store, chosen, "label").fill_null(UNKNOWN).to_numpy().astype(np.int64)
    return np.maximum(numbers, UNKNOWN)


def _from_metadata(store: Store, task: Task, chosen: np.ndarray, key: str) -> Int64[np.ndarray, " images"]:
    """The numbers of classes that the metadata gives as numbers or as names under `key`."""
    values = [value_at(each, key) for each in metadata_of_images(store, chosen)]
    numbers = {plain(name): number for number, name in reversed(list(enumerate(task.classes)))}
    unknown = sorted({value for value in values if isinstance(value, str) and _number_of(value, numbers) is None})
    if unknown:
        shown = ", ".join(repr(shortened(name, 40)) for name in unknown[:_SHOWN])
        raise SettingsError(
            f"{store.path}: {counted(len(unknown), 'class name')} of images (first: {shown}) "
            f"{'is' if len(unknown) == 1 else 'are'} not among the {_classes(len(task.classes))} of task "
            f"{task.name}; correct the names in the task"
        )
    found = [_number_of(value, numbers) for value in values]
    return np.array([UNKNOWN if number is None or number < 0 else number for number in found], np.int64)


def _number_of(value: Any, numbers: Mapping[str, int]) -> int | None:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        number = numbers.get(plain(value))
        return int(value) if number is None and value.isascii() and value.isdigit() else number
    return value if isinstance(value, int) else None


def plain(name: str) -> str:
    """A name as it is compared: underscores are spaces, and capital letters are small."""
    return " ".join(name.replace("_", " ").lower().split())


def _refuse_numbers_without_names(store: Store, task: Task, known: np.ndarray) -> None:
    beyond = known[known >= len(task.classes)]
    if len(beyond):
        raise SettingsError(
            f"{store.path}: {counted(len(beyond), 'image')} of class {int(beyond.max())}, but task {task.name} names "
            f"classes 0 to {len(task.classes) - 1}; add the missing names, or use the task of these images"
        )


def _note_gaps(task: Task, truths: np.ndarray, on_progress: Listener) -> None:
    without = int((truths == UNKNOWN).sum())
    if without:
        on_progress(Progress(NOTE, 1, 1, f"task {task.name}: {counted(without, 'image')} without a class left out"))
    counts = np.bincount(truths[truths != UNKNOWN], minlength=len(task.classes))
    empty = [task.classes[number] for number in np.flatnonzero(counts == 0)]
    if empty:
        shown = ", ".join(empty[:_SHOWN]) + (f" and {len(empty) - _SHOWN:,} more" if len(empty) > _SHOWN else "")
        on_progress(Progress(NOTE, 1, 1, f"task {task.name}: no image of {_classes(len(empty))} ({shown})"))


def _classes(count: int) -> str:
    return f"{count:,} class" + "es" * (count != 1)
