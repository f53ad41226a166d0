"""Choose the columns of Parquet files and lists that hold images, captions, classes and keys, and read their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.errors import SourceError
from headspan.member_names import MemberNames
from headspan.shards.keys import as_utf8

# The usual names, the preferred one first.
_USUAL = {
    "image": (
        *("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes"),
        *("path", "image_path", "file", "file_name", "filename", "file_path", "filepath"),
    ),
    "caption": ("caption", "text", "captions", "txt"),
    "class": ("label", "class", "cls"),
    "key": ("__key__", "key", "id", "image_id"),
}
_WORDS = {"image": "images", "caption": "captions", "class": "classes", "key": "keys"}
_LARGEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of images, captions, classes and keys; None where there is none. `others` become metadata."""

    image: str
    caption: str | None
    label: str | None
    key: str | None
    others: tuple[str, ...]


def choose(
    where: str, types: Mapping[str, str], names: MemberNames, can_be_image: Callable[[str], bool], image: str
) -> Columns:
    """The columns of a table whose columns have `types`, in words: those that `names` chooses, or else the usual ones.

    `image` says what a column of images holds. Raises SourceError if a chosen column does not exist, or if there is not
    exactly one candidate for the images.
    """
    listed = ", ".join(f"{name} ({kind})" for name, kind in types.items()) or "none"
    found: dict[str, str | None] = {}
    given = {
        "image": names.image_column,
        "caption": names.caption_column,
        "class": names.class_column,
        "key": names.key_column,
    }
    for role, column in given.items():
        if column is not None and column not in types:
            raise SourceError(f"{where}: no column {column}, which --{role}-column names; its columns are {listed}")
        if column is not None and role == "image" and not can_be_image(column):
            raise SourceError(f"{where}: column {column} ({types[column]}) does not hold {image}; columns: {listed}")
        found[role] = column
    lower = {name.lower(): name for name in reversed(list(types))}
    if found["image"] is None:
        candidates = [name for name in types if can_be_image(name)]
        usual = [lower[name] for name in _USUAL["image"] if lower.get(name) in candidates] or candidates
        if len(usual) != 1:
            what = "several columns may hold" if usual else "no column holds"
            raise SourceError(f"{where}: {what} {image}; name one with --image-column; its columns are {listed}")
        found["image"] = usual[0]
    taken = {name for name in found.values() if name is not None}
    for role in ("key", "caption", "class"):
        if found[role] is None:
            free = (lower[name] for name in _USUAL[role] if name in lower and lower[name] not in taken)
            if (column := next(free, None)) is not None:
                found[role] = column
                taken.add(column)
    others = tuple(name for name in types if name not in taken)
    assert found["image"] is not None
    return Columns(found["image"], found["caption"], found["class"], found["key"], others)


def said(columns: Columns, names: MemberNames) -> str:
    """The columns that were chosen by their usual names, in a sentence; empty if there are none."""
    found = {"image": columns.image, "caption": columns.caption, "class": columns.label, "key": columns.key}
    given = {"image": names.image_column, "caption": names.caption_column}
    given |= {"class": names.class_column, "key": names.key_column}
    chosen = [(role, column) for role, column in found.items() if column is not None and given[role] is None]
    if not chosen:
        return ""
    parts = [f"{_WORDS[role]} from `{column}`" for role, column in chosen]
    flags = [f"--{role}-column" for role, _ in chosen]
    return f"columns: {', '.join(parts)}; {' and '.join(flags)} {'name others' if len(chosen) > 1 else 'names another'}"


def values_of(
    columns: Columns, row: Mapping[str, Any], class_names: Sequence[str] = ()
) -> tuple[str | None, dict[str, str | int | None]]:
    """The key of a row of a table, None if it has none, and what a Sample has as `caption`, `label` and `metadata`."""

    def value(column: str | None) -> Any:
        return None if column is None else row.get(column)

    label, class_name = class_of(value(columns.label), class_names)
    return text_of(value(columns.key)) or None, {
        "caption": text_of(value(columns.caption)),
        "label": label,
        "metadata": metadata_of({name: row.get(name) for name in columns.others}, class_name),
    }


def text_of(value: Any) -> str | None:
    """A caption or key as text that a UTF-8 table can store; None for none. Of several captions, the first."""
    if isinstance(value, (list, tuple)):
        value = next((each for each in value if each is not None), None)
    if value is None:
        return None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return as_utf8(text).strip()


def class_of(value: Any, class_names: Sequence[str] = ()) -> tuple[int | None, str | None]:
    """The class as a number, and its name; each None if it is not known. A text that is not a number is a name."""
    if isinstance(value, bytes):
        value = text_of(value)
    if isinstance(value, bool):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return None, None
        if not (text.removeprefix("-").isdecimal() and text.isascii()):
            return None, text
        value = int(text)
    if not isinstance(value, int) or not -_LARGEST <= value <= _LARGEST:
        return None, None
    return value, class_names[value] if 0 <= value < len(class_names) else None


def metadata_of(others: Mapping[str, Any], class_name: str | None) -> str | None:
    """The other columns' values and the name of the class as JSON; None if there are none."""
    values = {name: _plain(value) for name, value in others.items()}
    if class_name is not None:
        values["class_name"] = class_name
    if not values:
        return None
    return as_utf8(json.dumps(values, ensure_ascii=False))


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        # JSON has no infinities.
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
