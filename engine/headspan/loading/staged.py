"""The stored numbers of a group of images in memory, from which batches are gathered.

A block of neighbouring images is copied from the files as it lies there, in long pieces. Gathering single images from
this memory, which has large pages, is several times as fast as gathering them from mapped files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from headspan.store.conversion import copy_numbers

# What is gathered at once before it is converted: these numbers stay in a core's cache.
_GATHERED_BYTES = 512 << 10


@dataclass(frozen=True, slots=True)
class Kind:
    """How a stored array is staged: pieces of an image, the type of a piece, and the stored type of its numbers."""

    pieces: int
    piece: np.dtype
    stored: np.dtype

    @property
    def image_bytes(self) -> int:
        """The bytes of one image."""
        return self.pieces * self.piece.itemsize


class Staged:
    """Memory for at most `images` images of stored arrays."""

    def __init__(self, kinds: Mapping[str, Kind], images: int) -> None:
        self._kinds = dict(kinds)
        # `[piece, image]` of each array.
        self.pieces = {name: np.empty((kind.pieces, images), kind.piece) for name, kind in kinds.items()}

    def take(self, name: str, at: Int64[np.ndarray, " image"], out: np.ndarray) -> None:
        """Copy the images at these places of the memory to `out`: `[image, piece, …]`, as stored or float32."""
        pieces, kind = self.pieces[name], self._kinds[name]
        index = at[:, None] + np.arange(kind.pieces) * pieces.shape[1]
        flat = pieces.reshape(-1)
        if out.dtype == kind.stored:
            # With "clip", which changes no index here, NumPy writes to `out` without a copy in between.
            flat.take(index, out=out.reshape(len(out), kind.pieces, -1).view(kind.piece)[..., 0], mode="clip")
            return
        step = max(1, _GATHERED_BYTES // kind.image_bytes)
        for first in range(0, len(at), step):
            some = out[first : first + step]
            copy_numbers(flat.take(index[first : first + step]).view(kind.stored).reshape(some.shape), some)
