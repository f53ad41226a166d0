"""Dropped-in images: encoded files in memory, by the checksum of their bytes; the oldest ones are dropped first."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from headspan.errors import SettingsError

# The largest file that is accepted, and the memory of all files that are kept.
LARGEST_BYTES = 32 << 20
_KEPT_BYTES = 256 << 20
PREFIX = "upload-"


class Uploads:
    """Encoded images by their ids."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, encoded: bytes) -> str:
        """Keep a file; return its id, which depends on its bytes alone."""
        name = PREFIX + hashlib.sha256(encoded).hexdigest()[:16]
        with self._lock:
            self._kept[name] = encoded
            self._kept.move_to_end(name)
            while sum(map(len, self._kept.values())) > _KEPT_BYTES and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return name

    def get(self, name: str) -> bytes:
        """The file of an id. Raises SettingsError if it is not kept, or no longer."""
        with self._lock:
            if name not in self._kept:
                raise SettingsError(f"the dropped-in image {name} is no longer kept by the server; drop it in again")
            self._kept.move_to_end(name)
            return self._kept[name]
