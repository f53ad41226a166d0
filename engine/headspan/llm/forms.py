"""What an answer must look like: a JSON schema for endpoints that know them, and a reader for all.

The reader is lenient about wrapping (code fences, thoughts, words around the JSON) and strict about content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_THOUGHTS = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)", re.DOTALL)


class NotAsAskedError(ValueError):
    """An answer that is none; the message completes "The answer …"."""


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A kind of answer. `read` takes the model's words and raises NotAsAskedError where they do not answer."""

    name: str
    schema: dict[str, Any]
    read: Callable[[str], Any]


def object_of(**fields: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these fields, in the subset that structured outputs take."""
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def read_field(text: str, name: str) -> Any:
    """The value of field `name` of the JSON object in `text`; several objects must agree.

    NotAsAskedError where there is none.
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
        raise NotAsAskedError(f"holds no JSON object with the field {name!r}")
    if len(values) > 1:
        raise NotAsAskedError(f"holds several values of {name!r}")
    return values[0]


def bare(text: str) -> str:
    """`text` without thoughts, code fences, quotes and full stops around it: an answer given without JSON."""
    return _THOUGHTS.sub("", text).strip().strip("`\"'.* \n")
