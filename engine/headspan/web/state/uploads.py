"""Dropped-in images: encoded files in memory, by the checksum of their bytes; the oldest ones are dropped first."""

from __future__ import annotations

import hashlib

from headspan.web.refusals import Missing
from headspan.web.state.bounded import Bounded

# The largest file that is accepted, and the memory of all files that are kept.
LARGEST_BYTES = 32 << 20
_KEPT_BYTES = 256 << 20
PREFIX = "upload-"


class Uploads:
    """Encoded images by their ids."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept: Bounded[bytes] = Bounded(kept_bytes, len)

    def add(self, encoded: bytes) -> str:
        """Keep a file; return its id, which depends on its bytes alone."""
        name = PREFIX + hashlib.sha256(encoded).hexdigest()[:16]
        self._kept.put(name, encoded)
        return name

    def get(self, name: str) -> bytes:
        """The file of an id. Raises Missing if it is not kept, or no longer."""
        found = self._kept.get(name)
        if found is None:
            raise Missing(
                f"the image {name[:40]!r} was not dropped in, or is no longer kept by the server; drop it in again"
            )
        return found
