"""Find the companions of an image by their names: its own name first, then the longest prefix of it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from headspan.shards.members import COMPANIONS, Entry, prefixes

# A word of a field. Other parts of a name, such as numbers, distinguish images.
_WORD = re.compile(r"[a-z_][a-z0-9_-]*")
# How many of several possible companions a note names.
_NAMED_COMPANIONS = 3


class CompanionIndex:
    """Companions by their stems, and by the prefixes of their stems.

    `image_prefixes` holds the stems of images and all prefixes of them. A companion with such a stem belongs to those
    images and to no other.
    """

    def __init__(self, entries: Iterable[Entry], image_prefixes: AbstractSet[str]) -> None:
        self._named: dict[tuple[str, str], Entry] = {}
        self._below: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        self._free: set[tuple[str, str]] = set()
        for entry in entries:
            role, stem = entry.field.role, entry.field.stem
            if role not in COMPANIONS:
                continue
            self._named[role, stem] = entry
            words = stem.split(".") if stem else []
            for place, word in enumerate(words):
                if entry.field.is_chosen or _WORD.fullmatch(word):
                    prefix = (role, ".".join(words[:place]))
                    if stem not in image_prefixes:
                        self._free.add(prefix)
                    if len(self._below[prefix]) < _NAMED_COMPANIONS:
                        self._below[prefix].append(entry)

    def named(self, role: str, stem: str) -> Entry | None:
        """The companion with exactly that stem."""
        return self._named.get((role, stem))

    def below(self, role: str, prefix: str) -> list[Entry]:
        """Some companions whose stem continues `prefix` with a word."""
        return self._below.get((role, prefix), [])

    def has_free(self, role: str, prefix: str) -> bool:
        """Whether a companion whose stem continues `prefix` is named after no image."""
        return (role, prefix) in self._free


def find_companions(role: str, stem: str, indexes: Sequence[CompanionIndex]) -> list[Entry]:
    """The companion of an image named `stem`: one, none, or several if each of them may belong to the image."""
    several: list[Entry] | None = None
    for prefix in prefixes(stem):
        for index in indexes:
            if (entry := index.named(role, prefix)) is not None:
                return [entry]
        if several is None and (below := [entry for index in indexes for entry in index.below(role, prefix)]):
            # If all of them are named after other images, they belong to those.
            several = below if any(index.has_free(role, prefix) for index in indexes) else []
    return several or []
