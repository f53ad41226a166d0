"""Keep blocks of files of object stores in a folder on disk, within a bound of bytes; several processes may share it.

A file of the folder holds the blocks of one file at their places, as a sparse file, after a table of their checksums. A
block whose checksum differs was cut off, damaged or written while the file was deleted; it counts as missing. Over the
bound, the files that were used least recently are deleted. A folder that cannot be read or written is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c
import numpy as np

from headspan.user_paths import cache_folder

# The bound that commands have.
MOST_BYTES = 10 << 30
# What is kept, and fetched at least: some numbers of one head or image are as small.
BLOCK_BYTES = 16 << 10
# Marks the entry of a block that was written; a file's holes read as zeros.
_WRITTEN = 1 << 32
_ENDING = ".blocks"
# The folder is measured each time that this share of the bound was written, and then reduced to the other share.
_MEASURED, _LEFT = 1 / 32, 7 / 8
_PAGE = 4096


def blocks_folder() -> Path:
    """The folder of blocks in the user's cache. Raises RuntimeError if the user has no home folder."""
    return cache_folder() / "buckets-1"


class DiskBlocks:
    """Blocks in `folder`, at most `most_bytes` of them. Threads may share it."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES, block_bytes: int = BLOCK_BYTES) -> None:
        self.folder, self.most_bytes, self._block_bytes = folder, most_bytes, block_bytes
        # So that the first block that is written measures what earlier processes have left.
        self._unmeasured = float("inf")

    def read(self, name: str, size: int, first: int, end: int) -> list[bytes | None]:
        """Return the blocks from `first` to `end` of the file `name` of `size` bytes; None for a missing block."""
        found: list[bytes | None] = [None] * (end - first)
        with suppress(OSError), _opened(self._path(name), os.O_RDONLY) as descriptor:
            entries = np.frombuffer(os.pread(descriptor, 8 * (end - first), 8 * first), np.uint64)
            for place, entry in enumerate(entries.tolist()):
                if entry:
                    begin, stop = self._span(size, first + place)
                    block = os.pread(descriptor, stop - begin, self._data(size) + begin)
                    found[place] = block if entry == _entry(block) and len(block) == stop - begin else None
            # The time of the last use; file systems seldom record reads.
            os.utime(descriptor)
        return found

    def write(self, name: str, size: int, first: int, data: bytes) -> None:
        """Keep `data`, which are the bytes of the file `name` from the block `first` on."""
        blocks = [data[start : start + self._block_bytes] for start in range(0, len(data), self._block_bytes)]
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with _opened(self._path(name), os.O_RDWR | os.O_CREAT) as descriptor:
                os.ftruncate(descriptor, self._data(size) + size)
                os.pwrite(descriptor, data, self._data(size) + first * self._block_bytes)
                os.pwrite(descriptor, np.array([_entry(each) for each in blocks], np.uint64).tobytes(), 8 * first)
            # At most: the data may begin and end within a page, and the table takes pages too.
            self._unmeasured += len(data) + 4 * _PAGE
            if self._unmeasured > self.most_bytes * _MEASURED:
                self._unmeasured = 0
                self._delete_oldest()

    @property
    def bytes(self) -> int:
        """The bytes that the folder takes on disk."""
        return sum(taken for _, taken, _ in self._files())

    def _delete_oldest(self) -> None:
        files = sorted(self._files())
        left = sum(taken for _, taken, _ in files)
        for _, taken, path in files if left > self.most_bytes * (1 - _MEASURED) else ():
            if left <= self.most_bytes * _LEFT:
                return
            with suppress(OSError):
                Path(path).unlink()
            left -= taken

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Time of the last use, bytes on disk and path of every file."""
        entries: Sequence[os.DirEntry[str]] = ()
        with suppress(OSError):
            entries = list(os.scandir(self.folder))
        for entry in entries:
            # Another process may have deleted it.
            with suppress(OSError):
                status = entry.stat()
                if entry.name.endswith(_ENDING):
                    # The system counts in units of 512 bytes.
                    yield status.st_mtime_ns, 512 * status.st_blocks, entry.path

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_ENDING}"

    def _data(self, size: int) -> int:
        """Where the blocks begin: after the table, at the border of a page."""
        return -(-8 * -(-size // self._block_bytes) // _PAGE) * _PAGE

    def _span(self, size: int, block: int) -> tuple[int, int]:
        return block * self._block_bytes, min((block + 1) * self._block_bytes, size)


def _entry(block: bytes) -> int:
    return _WRITTEN | int(google_crc32c.value(block))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
