"""Read the contents of companions: captions, metadata and classes, as a Sample stores them.

Each reader raises ValueError if the data is invalid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from headspan.shards.keys import as_utf8

# A companion is read as a whole while planning. A larger file is not a companion.
COMPANION_BYTES = 16 << 20


def read_caption(data: bytes) -> str:
    """The text without white space at its ends."""
    # Some programs write a byte order mark; the codec that removes it is slow.
    return data.decode().removeprefix("\ufeff").strip()


def read_metadata(data: bytes) -> str:
    """The JSON text as it is."""
    text = read_caption(data)
    json.loads(text)
    return text


def read_label(data: bytes) -> int:
    """The class as a number."""
    if not re.fullmatch(rb"\s*[+-]?[0-9]{1,18}\s*", data):
        raise ValueError("not an integer of 64 bits")
    return int(data)


def caption_in(metadata: str, key: str) -> str | None:
    """The text under `key` in the JSON text `metadata`; None if there is none."""
    values = json.loads(metadata)
    text = values.get(key) if isinstance(values, dict) else None
    # JSON can hold half of a surrogate pair, as in a text cut within an emoji. No UTF-8 table can store it.
    return as_utf8(text.strip()) if isinstance(text, str) else None


# For each of a Sample's fields: the reader of its companion, and the expected contents in words.
READERS: dict[str, tuple[Callable[[bytes], str | int], str]] = {
    "caption": (read_caption, "UTF-8"),
    "metadata": (read_metadata, "JSON"),
    "label": (read_label, "an integer"),
}
