"""Read tasks: declarations that ship with headspan, TOML files, and folders in CLIP-benchmark's layout.

A declaration is a TOML file with the fields of `Task`:

    metric = "accuracy"
    title = "Pets: zero-shot classification of 2 animals"
    classes = ["cat", "dog"]
    templates = ["a photo of a {c}."]

`classes` may also be "imagenet", and `templates` too: the 1,000 names and 80 prompts that open_clip ships. `classes_at`
then picks classes by their places, such as "0-397". Instead of both, `folder` names a folder in CLIP-benchmark's layout,
relative to the file. A group of `concepts` is a list of names, "all", or places such as "0-397".
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

from headspan.errors import SettingsError, shortened
from headspan.tasks.clip_benchmark import read_benchmark
from headspan.tasks.imagenet_names import imagenet_classes, imagenet_templates
from headspan.tasks.task import Metric, Task
from headspan.user_paths import expand_user

IMAGENET = "imagenet"
_DECLARATIONS = files("headspan.tasks") / "declarations"
_TEXTS = ("name", "metric", "title", "source", "layout", "published_note", "folder", "classes_at")
_FIELDS = (*_TEXTS, "classes", "templates", "concepts", "groups", "settings", "published")
# What a template must contain, by metric. The others have no templates.
_PLACES = {"accuracy": "{c}", "worst_group": "{c}", "segmentation": "{c}", "skew": "{p}"}


def shipped_tasks() -> tuple[str, ...]:
    """The names of the declarations that ship with headspan."""
    return tuple(
        sorted(each.name.removesuffix(".toml") for each in _DECLARATIONS.iterdir() if each.name.endswith(".toml"))
    )


def read_task(name_or_path: str | Path) -> Task:
    """The task of that name or file.

    `name_or_path` is the name of a shipped declaration, a TOML file, or a folder in CLIP-benchmark's layout. `A@FOLDER`
    is the declaration A, a name or a file, with the classes and templates of a folder in that layout: the declaration
    then gives what such folders lack, such as groups of classes and published figures. A name comes before a file;
    `./NAME` is always a file. Raises SettingsError if there is no such task, or if a field is unknown, missing, invalid,
    or contradicts another.
    """
    text = str(name_or_path)
    if text in shipped_tasks():
        return _declared((_DECLARATIONS / f"{text}.toml").read_text(encoding="utf-8"), text, text, None)
    path = expand_user(text, SettingsError)
    if path.is_dir():
        return read_benchmark(path)
    if path.is_file():
        return _read_file(path)
    before, at, folder = text.partition("@")
    if at and before and folder:
        return _with_folder(read_task(before), expand_user(folder, SettingsError), text)
    raise SettingsError(
        f"{text!r} is no task: neither a TOML file, nor a folder with a classnames.txt, nor one of {', '.join(shipped_tasks())}"
    )


def _read_file(path: Path) -> Task:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); name a TOML file with a task") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8; name a TOML file with a task") from error
    return _declared(content, path.stem, str(path), path.parent)


def _declared(content: str, name: str, where: str, folder: Path | None) -> Task:
    """The task of a declaration's text."""
    try:
        found = tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f'{where}: is not TOML ({error}); write fields such as metric = "accuracy"') from error
    if unknown := [field for field in found if field not in _FIELDS]:
        raise SettingsError(f"{where}: unknown field {unknown[0]}; a task's fields are {', '.join(_FIELDS)}")
    for field in _TEXTS:
        if field in found and not (isinstance(found[field], str) and found[field].strip()):
            raise SettingsError(f'{where}: {field} must be a text, such as {field} = "…"; it is {_shown(found[field])}')
    metrics = get_args(Metric)
    if found.get("metric") not in metrics:
        what = f"metric {found['metric']!r} does not exist" if "metric" in found else "the field metric is missing"
        raise SettingsError(f"{where}: {what}; give one of {', '.join(metrics)}")
    task = Task(
        found.get("name", name),
        found["metric"],
        *(" ".join(found.get(field, "").split()) for field in ("title", "source", "layout")),
        classes=_classes(found, where),
        templates=_templates(found, where),
        groups=_texts(found, "groups", where),
        settings=_settings(found, where),
        published=_published(found, where),
        published_note=" ".join(found.get("published_note", "").split()),
    )
    if "folder" in found:
        if both := [field for field in ("classes", "classes_at", "templates") if field in found]:
            raise SettingsError(f"{where}: has {both[0]} and a folder, which gives them too; remove one of the two")
        task = _with_folder(task, (folder or Path()) / expand_user(found["folder"], SettingsError), where)
    _refuse_contradictions(task, where)
    return replace(task, concepts=_concepts(found, task.classes, where))


def _with_folder(task: Task, folder: Path, where: str) -> Task:
    """The task with the classes and templates of a folder in CLIP-benchmark's layout."""
    of_folder = read_benchmark(folder)
    if "{c}" != _PLACES.get(task.metric) or not of_folder.classes:
        raise SettingsError(
            f"{where}: {folder} gives classes, but the metric of {task.name} is {task.metric}; leave it out"
        )
    unknown = sorted({name for names in task.concepts.values() for name in names} - set(of_folder.classes))
    if unknown:
        raise SettingsError(
            f"{where}: {folder} has no class {unknown[0]!r}, which a group of {task.name} names; use the declaration alone"
        )
    return replace(task, classes=of_folder.classes, templates=of_folder.templates)


def _refuse_contradictions(task: Task, where: str) -> None:
    place = _PLACES.get(task.metric)
    has_classes, needs_classes = bool(task.classes), place == "{c}"
    if has_classes != needs_classes:
        what = "needs the field classes, or a folder" if needs_classes else "has no use for classes; remove them"
        raise SettingsError(f"{where}: metric {task.metric} {what}")
    if bool(task.templates) != (place is not None):
        what = f"needs the field templates, with {place} in each" if place else "has no use for templates; remove them"
        raise SettingsError(f"{where}: metric {task.metric} {what}")
    if place and (without := [each for each in task.templates if place not in each]):
        what = "a class's name" if place == "{c}" else "what is asked about"
        raise SettingsError(f"{where}: template {without[0]!r} has no {place}, the place of {what}; write it")
    needs_groups = task.metric in ("worst_group", "skew")
    if bool(task.groups) != needs_groups:
        what = "needs the field groups, keys of the metadata" if needs_groups else "has no use for groups; remove them"
        raise SettingsError(f"{where}: metric {task.metric} {what}")
