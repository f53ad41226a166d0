"""Read parts of large files of an object store: by ranges of bytes, fetched side by side, kept within a bound of bytes.

A file is held as memory of its whole size, of which only fetched blocks take pages. So readers see one contiguous file
and may keep views of it. Over the bound, the files that were used last stay; a file that is dropped lives on while
somebody has a view of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait

import numpy as np

from headspan.forgetting import Forgetting
from headspan.io.disk_blocks import BLOCK_BYTES, DiskBlocks
from headspan.io.memory import untouched
from headspan.io.remembered import request_threads
from headspan.io.storage import Storage

# Blocks that are nearer than this are fetched with one request, which takes as long as a megabyte.
_GAP_BYTES = 128 << 10
# Longer ranges are divided, so that their parts arrive side by side.
_REQUEST_BYTES = 8 << 20
# Smaller files are fetched whole.
_WHOLE_BYTES = 1 << 20
# The most bytes of files that stay in memory, of all open stores together.
MEMORY_BYTES = 512 << 20

Range = tuple[int, int]
# Pairs of start and end.
Ranges = Sequence[Range] | np.ndarray


class UnexpectedSizeError(OSError):
    """A file is longer or shorter than its size was said to be."""


class _File:
    """One file, of which the blocks that were waited for are in memory."""

    def __init__(self, key: str, size: int) -> None:
        self.key, self.size = key, size
        self.writable = untouched(size)
        self.numbers = self.writable.view()
        self.numbers.flags.writeable = False
        self.there = np.zeros(-(-size // BLOCK_BYTES), bool)
        # The requests that fetch blocks, by block.
        self.coming: dict[int, Future[None]] = {}
        self.lock = threading.Lock()
        self.bytes = 0

    def span(self, first: int, end: int) -> Range:
        """The bytes of the blocks from `first` to `end`."""
        return first * BLOCK_BYTES, min(end * BLOCK_BYTES, self.size)


class Pending:
    """Ranges of a file that were asked for."""

    def __init__(self, numbers: np.ndarray, requests: Sequence[Future[None]]) -> None:
        self._numbers, self._requests = numbers, requests

    def wait(self) -> np.ndarray:
        """Return the file's bytes, of which those of the ranges are there.

        Raises FileNotFoundError, UnexpectedSizeError, and what `Storage.get_range` raises.
        """
        wait(self._requests)
        for each in self._requests:
            each.result()
        return self._numbers


class FilesInMemory:
    """The files in memory, those that were used last last; `most_bytes` of them at most."""

    def __init__(self, most_bytes: int = MEMORY_BYTES) -> None:
        self.most_bytes, self.bytes = most_bytes, 0
        self._files: OrderedDict[tuple[str, str], _File] = OrderedDict()
        self._lock = threading.Lock()
        self._owners = Forgetting(self._lock, self._drop_all)

    def watch(self, user: object, owner: str) -> None:
        """Drop the files of `owner` when `user` is deleted."""
        self._owners.watch(user, owner)

    def file(self, owner: str, key: str, size: int) -> _File:
        """The file `key` of `size` bytes; empty at first."""
        with self._lock:
            self._owners.forget_deleted()
            found = self._files.get((owner, key))
            if found is None or found.size != size:
                self._drop((owner, key))
                found = self._files[owner, key] = _File(key, size)
            self._files.move_to_end((owner, key))
            return found

    def grew(self, owner: str, file: _File, added: int) -> None:
        """Count bytes that were added to a file, and drop files if there are too many bytes."""
        with self._lock:
            self._owners.forget_deleted()
            # It may have been dropped meanwhile.
            if self._files.get((owner, file.key)) is file:
                file.bytes += added
                self.bytes += added
            while self.bytes > self.most_bytes:
                self._drop(next(iter(self._files)))

    def _drop_all(self, owner: str) -> None:
        for place in [place for place in self._files if place[0] == owner]:
            self._drop(place)

    def _drop(self, place: tuple[str, str]) -> None:
        file = self._files.pop(place, None)
        self.bytes -= file.bytes if file is not None else 0


_MEMORY = FilesInMemory()


class SparseFiles:
    """The large files of one store."""

    def __init__(self, storage: Storage, memory: FilesInMemory = _MEMORY) -> None:
        self._storage, self._memory = storage, memory
        # Keeps blocks on disk too, those of files whose content is known.
        self.disk: DiskBlocks | None = None
        # A name for the content of a file, by its key; empty if it is not known.
        self.content_of: Callable[[str], str] = lambda key: ""
        memory.watch(self, storage.token)

    def start(self, key: str, size: int, ranges: Ranges) -> Pending:
        """Begin to fetch the parts `ranges` of a file of `size` bytes, (start, end); those that are there are not."""
        file = self._memory.file(self._storage.token, key, size)
        wanted = _blocks(file, [(0, size)] if size <= _WHOLE_BYTES else ranges)
        with file.lock:
            absent = wanted[~file.there[wanted]].tolist()
            requests = {file.coming[block] for block in absent if block in file.coming}
            for first, end in _runs([block for block in absent if block not in file.coming]):
                # What lies in between may be there, or on its way; it is then fetched once more.
                request: Future[None] = Future()
                file.coming.update(dict.fromkeys(range(first, end), request))
                requests.add(request)
                request_threads().submit(self._fetch, file, first, end, request)
        return Pending(file.numbers, list(requests))

    def read(self, key: str, size: int, ranges: Ranges) -> np.ndarray:
        """Return the bytes of a file, of which those of `ranges` are there. Raises as `Pending.wait`."""
        return self.start(key, size, ranges).wait()

    def _fetch(self, file: _File, first: int, end: int, request: Future[None]) -> None:
        """Fill the blocks from `first` to `end`."""
        begin, stop = file.span(first, end)
        try:
            name = self.content_of(file.key) if self.disk is not None else ""
            for start, part in self._parts(file, first, end, name):
                file.writable[start : start + len(part)] = np.frombuffer(part, np.uint8)
            with file.lock:
                file.there[first:end] = True
        # Whoever waits for the blocks raises it.
        except BaseException as error:
            request.set_exception(error)
        else:
            self._memory.grew(self._storage.token, file, stop - begin)
            request.set_result(None)
        finally:
            with file.lock:
                for block in range(first, end):
                    if file.coming.get(block) is request:
                        del file.coming[block]

    def _parts(self, file: _File, first: int, end: int, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of blocks with their offsets: from disk if the content is known as `name`, or by requests."""
        kept = self.disk.read(name, file.size, first, end) if self.disk is not None and name else [None] * (end - first)
        yield from ((file.span(first + place, 0)[0], block) for place, block in enumerate(kept) if block is not None)
        missing = [first + place for place, block in enumerate(kept) if block is None]
        for one, other in _runs(missing):
            begin, stop = file.span(one, other)
            # One byte more than the file should have shows that it is longer.
            found = self._storage.get_range(file.key, begin, stop - begin + (stop == file.size))
            if len(found) != stop - begin:
                raise UnexpectedSizeError(f"{file.key} does not have {file.size} bytes")
            if self.disk is not None and name:
                self.disk.write(name, file.size, one, found)
            yield begin, found


def _blocks(file: _File, ranges: Ranges) -> np.ndarray:
    """The blocks that hold the ranges, in order."""
    starts, ends = np.asarray(ranges, np.int64).reshape(-1, 2).T
    # How many ranges begin before a block and have not ended.
    open_ranges = np.zeros(len(file.there) + 1, np.int64)
    np.add.at(open_ranges, starts // BLOCK_BYTES, ends > starts)
    np.subtract.at(open_ranges, -(-ends // BLOCK_BYTES), ends > starts)
    return np.flatnonzero(open_ranges.cumsum()[:-1])


def _runs(blocks: Sequence[int]) -> Iterator[Range]:
    """First and end of each run of blocks to request together; blocks are in order."""
    most, gap = _REQUEST_BYTES // BLOCK_BYTES, _GAP_BYTES // BLOCK_BYTES
    first = end = -1
    for block in blocks:
        if first < 0:
            first = block
        elif block - end > gap or block + 1 - first > most:
            yield first, end
            first = block
        end = block + 1
    if first >= 0:
        yield first, end
