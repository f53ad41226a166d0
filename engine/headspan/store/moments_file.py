"""Count, sum and Gram matrices of many images' head coordinates: added, and as a file.

A file holds the Gram matrices' upper triangles, since they are symmetric; zip's checksums tell where one is damaged.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headspan.errors import StoreError, one_line


@dataclass(frozen=True, slots=True)
class MergedMoments:
    """Count, and sum `[layer, head, coordinate]` and Gram `[layer, head, coordinate, coordinate]`, float64."""

    count: int
    total: np.ndarray
    gram: np.ndarray

    @property
    def sha256(self) -> str:
        """Identifies the images that they were taken of: equal only where every number is."""
        digest = hashlib.sha256(str(self.count).encode())
        for numbers in (self.total, self.gram):
            digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()

    def __add__(self, other: MergedMoments) -> MergedMoments:
        return MergedMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)


def pack(moments: MergedMoments) -> bytes:
    """The moments as the bytes of a file."""
    upper = np.triu_indices(moments.gram.shape[-1])
    buffer = io.BytesIO()
    np.savez(buffer, count=moments.count, total=moments.total, upper=moments.gram[..., upper[0], upper[1]])
    return buffer.getvalue()


def unpack(path: Path) -> MergedMoments:
    """The moments that the file at `path` holds. Raises StoreError where it is damaged."""
    try:
        # Opened here, since NumPy leaves a file open that is none of its own.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as packed:
            count, total, packed_upper = int(packed["count"]), packed["total"], packed["upper"]
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: these moments are damaged ({one_line(error)}); run headspan repair") from error
    size = total.shape[-1]
    upper = np.triu_indices(size)
    gram = np.empty((*total.shape, size))
    gram[..., upper[0], upper[1]] = packed_upper
    gram[..., upper[1], upper[0]] = packed_upper
    return MergedMoments(count, total, gram)
