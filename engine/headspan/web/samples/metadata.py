"""A sample's metadata as answers show it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headspan.redact import redact
from headspan.tasks.truths import CLASS_NAME

# Where metadata that are no object are put.
_WHOLE = "metadata"


def metadata_of(text: str | None) -> dict[str, Any]:
    """The metadata of a sample, from their JSON. Whatever they are, JSON and UTF-8 can hold the result.

    Numbers that JSON does not have are null, halves of surrogate pairs are question marks, and secrets in URLs are
    removed.
    """
    if text is None:
        return {}
    try:
        found = _clean(json.loads(text, parse_constant=lambda name: None))
    except (ValueError, RecursionError):
        found = _clean(text)
    return found if isinstance(found, dict) else {_WHOLE: found}


def class_name(metadata: Mapping[str, Any]) -> str | None:
    """The name of an image's class, where the metadata hold one."""
    found = metadata.get(CLASS_NAME)
    return found if isinstance(found, str) else None


def column_of(text: str | None, path: Sequence[str]) -> tuple[str, str] | None:
    """The column of a path of keys as `tasks.factors` reads it, and the sample's value there; None if it has none.

    Columns are those of `samples.columns`; a list goes on in its first entry, unless a number names another one.
    """
    try:
        found: Any = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    column: list[str] = []
    for name in path:
        if isinstance(found, list):
            column.append(name if name.isdigit() else "0")
            found = found[int(column[-1])] if int(column[-1]) < len(found) else None
            if name.isdigit():
                continue
        column.append(name.replace("~", "~0").replace("/", "~1"))
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, str | int | float):
        return None
    return "/".join(column), found if isinstance(found, str) else json.dumps(found)


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value.encode("utf-8", "replace").decode())
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    if isinstance(value, dict):
        return {_clean(key): _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list) else value
