"""A file of an object store as a seekable file object, which fetches only the parts that are read."""

from __future__ import annotations

import io
from collections.abc import Sequence

from headspan.io.sparse_files import Range, SparseFiles


class RangeFile(io.RawIOBase):
    """The file `key` of `size` bytes."""

    def __init__(self, files: SparseFiles, key: str, size: int) -> None:
        super().__init__()
        self._files, self._key, self._size, self._position = files, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def size(self) -> int:
        """The size of the file in bytes."""
        return self._size

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        rest = max(0, self._size - self._position)
        end = self._position + (rest if size is None or size < 0 else min(size, rest))
        begin, self._position = self._position, end
        return self._files.read(self._key, self._size, [(begin, end)])[begin:end].tobytes()

    def expect(self, ranges: Sequence[Range]) -> None:
        """Begin to fetch parts that are going to be read, (start, end)."""
        self._files.start(self._key, self._size, ranges)
