"""A `.npy` file of float32 numbers that is filled part by part, in any order."""

from __future__ import annotations

import os
from io import BytesIO
from math import prod
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from headspan.io.files import new_token, refusals, staged, sync_folder

_OTHERWISE = "name another folder"


class ArrayFile:
    """The file at `path` with room for an array of `shape`. Methods raise StoreError if it cannot be written."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._path = path
        self._shape = shape
        self._header = _header(shape)
        self._descriptor = -1

    def create(self) -> None:
        """Write the file with zeros, which take no room on most disks; an earlier file is replaced."""
        temporary = staged(self._path, new_token())
        with refusals(self._path, _OTHERWISE):
            with temporary.open("wb") as file:
                file.write(self._header)
                file.truncate(self._bytes)
            temporary.replace(self._path)
            sync_folder(self._path.parent)

    @property
    def whole(self) -> bool:
        """Whether the file exists and has the size of its shape."""
        return self._path.is_file() and self._path.stat().st_size == self._bytes

    @property
    def _bytes(self) -> int:
        return len(self._header) + 4 * prod(self._shape)

    def open(self) -> None:
        """Open the file, which exists, for `put`."""
        with refusals(self._path, _OTHERWISE):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def put(self, first: int, numbers: Float32[np.ndarray, "..."]) -> None:
        """Write `numbers` from the number `first` on, in the order of an array that is stored by rows."""
        data, at = np.ascontiguousarray(numbers, "<f4").tobytes(), len(self._header) + 4 * first
        with refusals(self._path, _OTHERWISE), memoryview(data) as left:
            written = 0
            while written < len(data):
                written += os.pwrite(self._descriptor, left[written:], at + written)

    def sync(self) -> None:
        """Make what was written durable."""
        with refusals(self._path, _OTHERWISE):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def array(self) -> Float32[np.ndarray, "..."]:
        """The array, as a read-only memory map."""
        found: np.ndarray = np.load(self._path, mmap_mode="r")
        return found


def _header(shape: tuple[int, ...]) -> bytes:
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()
