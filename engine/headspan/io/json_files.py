"""Small JSON files that people may look at, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headspan.errors import StoreError, one_line
from headspan.io.files import write_atomically


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Write a small JSON file, whole or not at all."""
    write_atomically(path, [json.dumps(content, indent=1).encode()])


def read_json(path: Path, todo: str) -> dict[str, Any]:
    """Read a JSON object. Raises StoreError, which says what to do, if that fails."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({one_line(error)}); {todo}") from error
    return found
