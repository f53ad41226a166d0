"""Read tasks: declarations that ship with headspan, TOML files, and folders in CLIP-benchmark's layout.

A declaration is a TOML file with the fields of `Task`:

    metric = "accuracy"
    title = "Pets: zero-shot classification of 2 animals"
    classes = ["cat", "dog"]
    templates = ["a photo of a {c}."]

`classes` and `templates` may also be "imagenet": the 1,000 names and 80 prompts that open_clip ships. `classes_at` then
picks classes by their places, such as "0-397". In place of both, `folder` names a folder in CLIP-benchmark's layout,
relative to the file. A group of `concepts` is a list of names, "all", or places such as "0-397".
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import get_args

from headspan.errors import SettingsError
from headspan.tasks import task_fields as fields
from headspan.tasks.clip_benchmark import read_benchmark
from headspan.tasks.task import Metric, Task
from headspan.user_paths import expand_user

_DECLARATIONS = files("headspan.tasks") / "declarations"
_TEXTS = ("name", "metric", "title", "source", "layout", "published_note", "folder", "classes_at")
_FIELDS = (*_TEXTS, "classes", "templates", "concepts", "groups", "merged", "settings", "published")
# A larger file is something else, such as a tar.
_MOST_BYTES = 16 << 20
# What a template must contain, by metric. The others have no templates.
_PLACES = {"accuracy": "{c}", "worst_group": "{c}", "segmentation": "{c}", "skew": "{p}"}
# The settings of each metric; what they mean is said in the module that scores it.
_SETTINGS = {
    "accuracy": ("class_key",),
    "worst_group": ("class_key",),
    "segmentation": (),
    "skew": ("k", "smoothing"),
    "retrieval": ("captions", "renormalised"),
}


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
    `./NAME` is always a file. Raises SettingsError if there is no such task, or if a field is unknown, missing or
    invalid, or contradicts another.
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
    shipped = ", ".join(shipped_tasks())
    raise SettingsError(
        f"{text!r} is not a task: name a TOML file, a folder with a classnames.txt, or one of {shipped}"
    )


def _read_file(path: Path) -> Task:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise SettingsError(f"{path}: is too large for a declaration; name a TOML file with a task")
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
            raise SettingsError(
                f'{where}: {field} must be a text, such as {field} = "…"; it is {fields.shown(found[field])}'
            )
    metrics = get_args(Metric)
    if found.get("metric") not in metrics:
        what = f"metric {found['metric']!r} does not exist" if "metric" in found else "the field metric is missing"
        raise SettingsError(f"{where}: {what}; give one of {', '.join(metrics)}")
    title, source, layout, note = (
        " ".join(found.get(field, "").split()) for field in ("title", "source", "layout", "published_note")
    )
    task = Task(
        name=found.get("name", name),
        metric=found["metric"],
        title=title,
        source=source,
        layout=layout,
        classes=fields.classes(found, where),
        templates=fields.templates(found, where),
        groups=fields.texts(found, "groups", where),
        merged=fields.merged(found, where),
        settings=fields.settings(found, where),
        published=fields.published(found, where),
        published_note=note,
    )
    if "folder" in found:
        if both := [field for field in ("classes", "classes_at", "templates") if field in found]:
            raise SettingsError(f"{where}: has {both[0]} and a folder, which gives them too; remove one of the two")
        task = _with_folder(task, (folder or Path()) / expand_user(found["folder"], SettingsError), where)
    task = replace(task, concepts=fields.concepts(found, task.classes, where))
    _refuse_contradictions(task, where)
    return task


def _with_folder(task: Task, folder: Path, where: str) -> Task:
    """The task with the classes and templates of a folder in CLIP-benchmark's layout."""
    found = read_benchmark(folder)
    if _PLACES.get(task.metric) != "{c}" or not found.classes:
        raise SettingsError(f"{where}: metric {task.metric} takes no classes from {folder}, which is of {found.metric}")
    concepts = {name: found.classes if names == task.classes else tuple(names) for name, names in task.concepts.items()}
    unknown = sorted({name for names in concepts.values() for name in names} - set(found.classes))
    if unknown:
        raise SettingsError(
            f"{where}: {folder} has no class {unknown[0]!r}, which a group of {task.name} names; use one of them alone"
        )
    return replace(task, classes=found.classes, templates=found.templates, concepts=concepts)


def _refuse_contradictions(task: Task, where: str) -> None:
    """Raise SettingsError if the metric lacks a field, or has no use for one."""
    place = _PLACES.get(task.metric)
    required = {
        "classes": place == "{c}",
        "templates": place == "{c}",
        "groups": task.metric in ("worst_group", "skew"),
    }
    used = {"classes": place is not None, "templates": place is not None, "groups": required["groups"]}
    used |= {"merged": required["groups"], "concepts": place == "{c}"}
    for field, is_used in used.items():
        if getattr(task, field) and not is_used:
            raise SettingsError(f"{where}: metric {task.metric} has no use for {field}; remove the field")
        if required.get(field) and not getattr(task, field):
            other = "" if field == "groups" else ", or a folder in CLIP-benchmark's layout"
            raise SettingsError(f"{where}: metric {task.metric} needs the field {field}{other}")
    if unknown := [name for name in task.settings if name not in _SETTINGS[task.metric]]:
        known = ", ".join(_SETTINGS[task.metric]) or "it has none"
        raise SettingsError(f"{where}: unknown setting {unknown[0]} of metric {task.metric}; settings: {known}")
    if place and (without := [each for each in task.templates if place not in each]):
        what = "a class's name" if place == "{c}" else "a prompt's subject"
        raise SettingsError(f"{where}: template {without[0]!r} has no {place}, the place of {what}; write it")
