"""Make a task of an attribute that the metadata of images name, such as `colour`: its values are the classes."""

from __future__ import annotations

from collections.abc import Sequence

from headspan.errors import SettingsError, counted, shortened
from headspan.store.reader import Store
from headspan.tasks.task import Task
from headspan.tasks.truths import metadata_values

# The prompt of a value unless the user gives others.
TEMPLATE = "a photo of a {c}."
# More values than this are no classes, such as names of files.
_MOST = 1000


def attribute_task(store: Store, key: str, templates: Sequence[str] = (TEMPLATE,), by: Sequence[str] = ()) -> Task:
    """A task whose classes are the texts that metadata hold under `key`, in alphabetical order.

    `by` are keys of metadata whose values are groups of images, with the class; without them the metric is accuracy.
    Raises SettingsError if the values are not texts, if there are fewer than two, or if a template has no `{c}`.
    """
    every = [value for (value,) in metadata_values(store, [key]) if value is not None]
    if others := [value for value in every if not isinstance(value, str)]:
        raise SettingsError(
            f"{store.path}: metadata hold {shortened(repr(others[0]), 40)} under {key!r}, which is no text; write a "
            "task file that names the classes"
        )
    values = set(every)
    if not 2 <= len(values) <= _MOST:
        raise SettingsError(
            f"{store.path}: metadata hold {counted(len(values), 'value')} under {key!r}, but classes are 2 to "
            f"{_MOST:,}; name another key"
        )
    if without := [each for each in templates if "{c}" not in each]:
        raise SettingsError(f"template {without[0]!r} has no {{c}}, the place of a class's name; write it")
    return Task(
        name=key,
        metric="worst_group" if by else "accuracy",
        title=f"The attribute {key} of the metadata",
        classes=tuple(sorted(values)),
        templates=tuple(templates),
        groups=tuple(by),
        settings={"class_key": key},
    )
