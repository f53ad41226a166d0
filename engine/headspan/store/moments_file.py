"""Count, sum and Gram matrices of many images' head coordinates: their addition and their file format.

A file contains the upper triangles of the Gram matrices, which are symmetric. The checksums of zip reveal damage.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import dataclass

import numpy as np

from headspan.errors import StoreError, one_line


@dataclass(frozen=True, slots=True)
class MergedMoments:
    """Number of images, sum `[layer, head, coordinate]`, Gram `[layer, head, coordinate, coordinate]`, float64."""

    count: int
    total: np.ndarray
    gram: np.ndarray

    @property
    def sha256(self) -> str:
        """A checksum of all numbers; it identifies the images that the moments were computed from."""
        digest = hashlib.sha256(str(self.count).encode())
        for numbers in (self.total, self.gram):
            digest.update(np.ascontiguousarray(numbers).data)
        return digest.hexdigest()

    def __add__(self, other: MergedMoments) -> MergedMoments:
        return MergedMoments(self.count + other.count, self.total + other.total, self.gram + other.gram)


def pack(moments: MergedMoments) -> bytes:
    """Return the moments as the content of a file."""
    upper = np.triu_indices(moments.gram.shape[-1])
    buffer = io.BytesIO()
    np.savez(buffer, count=moments.count, total=moments.total, upper=moments.gram[..., upper[0], upper[1]])
    return buffer.getvalue()


def unpack(content: bytes, name: str) -> MergedMoments:
    """Return the moments in the content of the file `name`. Raises StoreError if it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as packed:
            count, total, packed_upper = int(packed["count"]), packed["total"], packed["upper"]
    except (EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(f"{name}: these moments are damaged ({one_line(error)}); run headspan repair") from error
    size = total.shape[-1]
    upper = np.triu_indices(size)
    gram = np.empty((*total.shape, size))
    gram[..., upper[0], upper[1]] = packed_upper
    gram[..., upper[1], upper[0]] = packed_upper
    return MergedMoments(count, total, gram)
