"""Read a folder in the layout of CLIP-benchmark's data sets as a task, without any change to it.

    wds_NAME/classnames.txt                             a name a line, in the order of the classes' numbers
    wds_NAME/zeroshot_classification_templates.txt      a prompt a line, with {c} for a class's name
    wds_NAME/dataset_type.txt                           only for other kinds of tasks: retrieval or multilabel
    wds_NAME/test/0.tar, test/1.tar, …                  images with `.cls` members, or captions in `.txt` members
    wds_NAME/test/nshards.txt                           the number of these tars

Source: https://github.com/LAION-AI/CLIP_benchmark (webdataset_builder.py). Text files are UTF-8, and white space at the
ends of a line is no part of a name. Tasks need no image: the tars are what `headspan precompute` reads.
"""

from __future__ import annotations

from pathlib import Path

from headspan.errors import SettingsError, counted
from headspan.tasks.task import Task

CLASSES, TEMPLATES, KIND = "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
_SPLIT = "test"


def read_benchmark(folder: Path) -> Task:
    """The task of a folder: classification, or retrieval if `dataset_type.txt` says so.

    Its name is the folder's without `wds_`. Raises SettingsError if the folder has no class names or no templates, if a
    template lacks `{c}`, if the set is multilabel, or if some of its tars are missing.
    """
    if not folder.is_dir():
        raise SettingsError(
            f"{folder}: not a folder; name one with a {CLASSES}, as CLIP-benchmark's data sets are laid out"
        )
    kind = " ".join(_lines(folder / KIND)).lower() if (folder / KIND).exists() else "classification"
    name = folder.resolve().name.removeprefix("wds_")
    source = f"the folder {folder}, in the layout of CLIP-benchmark"
    shards = _shards(folder)
    layout = f"headspan precompute '{shards}'" if shards else ""
    if kind == "retrieval":
        title = f"{name}: retrieval of images by their captions"
        return Task(name, "retrieval", title, source, layout, settings={"captions": "all"})
    if kind != "classification":
        raise SettingsError(
            f"{folder / KIND}: says {kind!r}, but headspan scores classification with one class an image and retrieval "
            "only; use another data set"
        )
    if not (folder / CLASSES).exists():
        raise SettingsError(
            f"{folder}: has no {CLASSES}, which names the classes of CLIP-benchmark's data sets, one a line; copy or "
            "write it, or name a TOML file"
        )
    if not (folder / TEMPLATES).exists():
        raise SettingsError(f"{folder}: has no {TEMPLATES}; write one, such as the line: a photo of a {{c}}.")
    classes, templates = _lines(folder / CLASSES), [line for line in _lines(folder / TEMPLATES) if line]
    if not any(classes):
        raise SettingsError(f"{folder / CLASSES}: is empty; write the name of each class on a line")
    if not templates:
        raise SettingsError(f"{folder / TEMPLATES}: is empty; write a prompt a line, such as: a photo of a {{c}}.")
    if without := [each for each in templates if "{c}" not in each]:
        raise SettingsError(
            f"{folder / TEMPLATES}: {without[0]!r} has no {{c}}, the place of a class's name; write it, as in: a photo "
            "of a {c}."
        )
    title = f"{name}: zero-shot classification into {len(classes):,} classes"
    return Task(name, "accuracy", title, source, layout, classes, tuple(templates))


def _shards(folder: Path) -> str:
    """The tars as a brace pattern; empty if there are none. Raises SettingsError if some are missing."""
    numbers = {int(path.stem) for path in (folder / _SPLIT).glob("*.tar") if path.stem.isdigit()}
    if not numbers:
        return ""
    count = max(numbers) + 1
    stated = folder / _SPLIT / "nshards.txt"
    if stated.exists():
        text = " ".join(_lines(stated))
        if not text.isdigit():
            raise SettingsError(f"{stated}: says {text[:40]!r}; write the number of tars beside it")
        count = max(count, int(text))
    if missing := sorted(set(range(count)) - numbers):
        raise SettingsError(
            f"{folder / _SPLIT}: {counted(len(missing), 'tar')} of {count} missing (first: {missing[0]}.tar); download "
            "again"
        )
    return str(folder / _SPLIT / (f"{{0..{count - 1}}}.tar" if count > 1 else "0.tar"))


def _lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file. Lines may be empty, except the last ones: a class may have an empty name."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read ({error.strerror}); correct its permissions") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)
