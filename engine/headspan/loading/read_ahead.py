"""Read the batches of an epoch ahead, in threads.

Images come in buffers of several blocks, and a group is what a buffer gives in whole batches. The system is asked for
the files of the next buffers. Blocks of neighbouring images are copied from the files to memory, the next group while
batches are gathered from this one. In a DataLoader's worker, and if a group takes too much memory, each batch is read
straight from the mapped files.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TypeVar

import numpy as np
from torch.utils.data import get_worker_info

from headspan.loading.columns import Columns
from headspan.loading.order import Order
from headspan.loading.staged import Staged
from headspan.loading.tensors import Batch, as_tensors

# Batches that are gathered ahead, and the threads that copy and gather.
_AHEAD, _THREADS = 4, min(4, os.cpu_count() or 1)
# Groups are copied to memory if a buffer takes at most this much; two or three are there at once.
_STAGED_BYTES = 512 << 20
# Buffers whose files the system is asked for before they are needed.
_BUFFERS_AHEAD = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Reads batches of `batch_images` images of a store, in an order."""

    columns: Columns
    order: Order
    batch_images: int
    drop_last: bool

    def batches(self, epoch: int, positions: range, skipped: int) -> Iterator[Batch]:
        """Yield the batches of the images at `positions` of an epoch, but for the first `skipped`."""
        image_bytes = sum(kind.image_bytes for kind in self.columns.staged_kinds.values())
        # A DataLoader's workers are processes already.
        in_worker = get_worker_info() is not None
        staged = not in_worker and image_bytes * self._buffer_images <= _STAGED_BYTES
        threads = 1 if in_worker else _THREADS
        # One thread asks for files, in the order in which they are needed; others copy groups and gather batches.
        asking, copying, gathering = (ThreadPoolExecutor(count, "headspan-loading") for count in (1, threads, threads))
        with asking, copying, gathering:
            groups = self._groups(epoch, positions, skipped, asking)
            waiting: deque[Future[Batch]] = deque()
            try:
                for read in self._staged(groups, copying) if staged else self._unstaged(groups):
                    waiting.append(gathering.submit(as_tensors, read))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    @property
    def _buffer_images(self) -> int:
        return self.order.block_images * self.order.buffer_blocks

    def _groups(self, epoch: int, positions: range, skipped: int, asking: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        """The places of the images of whole batches, a buffer at a time."""
        size = self.batch_images
        rest = np.empty(0, np.int64)
        asked: deque[np.ndarray] = deque()
        for buffer in chain(self.order.buffers(epoch, positions, skipped * size), [None] * _BUFFERS_AHEAD):
            if buffer is not None:
                asking.submit(self.columns.read_ahead, np.sort(buffer))
                asked.append(buffer)
            if asked and (buffer is None or len(asked) > _BUFFERS_AHEAD):
                rest = np.concatenate([rest, asked.popleft()])
                whole = len(rest) // size * size
                if whole:
                    yield rest[:whole]
                rest = rest[whole:]
        if len(rest) and not self.drop_last:
            yield rest

    def _unstaged(self, groups: Iterator[np.ndarray]) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
        """What reads each batch from the mapped files."""
        for group in groups:
            for first in range(0, len(group), self.batch_images):
                yield partial(self.columns.read, group[first : first + self.batch_images])

    def _staged(
        self, groups: Iterator[np.ndarray], copying: ThreadPoolExecutor
    ) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
        """What reads each batch from its group's memory, once that is filled. The next group is copied meanwhile."""
        # A group begins with the images that the buffer before left over, which are fewer than a batch.
        most = self._buffer_images + self.batch_images
        free: deque[Staged] = deque()
        ahead: deque[tuple[np.ndarray, Staged, list[Future[None]]]] = deque()
        try:
            for group in chain(groups, [None]):
                if group is not None:
                    memory = free.popleft() if free else Staged(self.columns.staged_kinds, most)
                    ahead.append((group, memory, self._copies(group, memory, copying)))
                while ahead and (group is None or len(ahead) > 1):
                    places, memory, copies = ahead.popleft()
                    for copy in copies:
                        copy.result()
                    # Where each image is among the sorted ones.
                    at = np.argsort(np.argsort(places))
                    batches = range(0, len(places), self.batch_images)
                    last = _Countdown(len(batches), partial(free.append, memory))
                    for first in batches:
                        some = slice(first, first + self.batch_images)
                        yield last.after(partial(self.columns.read_staged, places[some], memory, at[some]))
        finally:
            for _, _, copies in ahead:
                for copy in copies:
                    copy.cancel()

    def _copies(self, group: np.ndarray, memory: Staged, copying: ThreadPoolExecutor) -> list[Future[None]]:
        """Begin to copy the images of a group, sorted, to its memory, about a block at a time."""
        images, block = np.sort(group), self.order.block_images
        return [
            copying.submit(self.columns.stage, images[first : first + block], memory, first)
            for first in range(0, len(images), block)
        ]


class _Countdown:
    """Calls `end` when the last of `count` functions has returned."""

    def __init__(self, count: int, end: Callable[[], None]) -> None:
        self._left, self._end = count, end
        self._lock = threading.Lock()

    def after(self, work: Callable[..., T]) -> Callable[..., T]:
        """Return `work` as a function that counts when it returns."""

        def counted(*arguments: object) -> T:
            result = work(*arguments)
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._end()
            return result

        return counted
