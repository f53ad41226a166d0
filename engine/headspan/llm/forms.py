"""The form of an answer: a JSON schema for endpoints that support one, and a reader of any reply.

Reading is lenient about wrapping (code fences, thoughts, words around the JSON) and strict about content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)


class NotAsAskedError(ValueError):
    """A reply does not have the form that was asked for; the message completes "The answer …"."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A kind of answer. `read` turns a reply into a value, and raises NotAsAskedError if it cannot."""

    name: str
    schema: dict[str, Any]
    read: Callable[[str], Any]


def object_of(**fields: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these fields, in the subset that structured outputs support."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_field(text: str, name: str) -> Any:
    """The value of field `name` of the JSON object in `text`; several objects must have the same value.

    Raises NotAsAskedError if there is no such object, or if values differ.
    """
    values: list[Any] = []
    plain = _THOUGHTS.sub("", text)
    start = plain.find("{")
    while start >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(plain, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if name in found and found[name] not in values:
                values.append(found[name])
        start = plain.find("{", end)
    if not values:
        raise NotAsAskedError(f"contains no JSON object with the field {name!r}")
    if len(values) > 1:
        raise NotAsAskedError(f"contains several values of {name!r}")
    return values[0]


def bare(text: str) -> str:
    """`text` without thoughts, and without code fences, quotes and full stops around it."""
    return _THOUGHTS.sub("", text).strip().strip("`\"'.* \n")
