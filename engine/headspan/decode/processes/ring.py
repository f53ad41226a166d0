"""The memory that the launching process shares with its decoding processes: slots for pixels, and notes.

In its notes, a process states which image it is decoding, so that the launching process knows which image ended it,
and how much memory its raster takes, so that all rasters together stay within a limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import UInt8

from headspan.decode.processes.messages import NOTE_BYTES, WorkerSettings
from headspan.io.memory import lock, locked, map_shared, unlock

# A note's parts: the number of the span, the place of the image in it (or NOWHERE), and the bytes of its raster.
_SPAN, _IMAGE, _RASTER = range(3)
NOWHERE = -1
# Locks of the memory file: one for the sum of all rasters, one for a process whose image needs more than its share.
_RASTER_LOCK, _LARGE_LOCK = range(2)
# How long a process waits before it asks again whether its raster fits.
_POLL_SECONDS = 0.002


class Ring:
    """The memory file that the settings describe, as the launching process and its workers see it."""

    def __init__(self, settings: WorkerSettings) -> None:
        workers, slots, images = settings.workers, settings.slots, settings.slot_images
        memory = map_shared(settings.ring, settings.ring_bytes)
        self._descriptor, self._most_raster_bytes = settings.ring, settings.raster_bytes
        self._notes = memory[: workers * NOTE_BYTES].view(np.int64).reshape(workers, -1)
        # All slots, as one array of bytes that begins at a page.
        self.memory: UInt8[np.ndarray, " byte"] = memory[settings.notes_bytes :]
        self.slots: UInt8[np.ndarray, "slot image height width 3"] = self.memory.reshape(
            slots, images, *settings.preprocess.size, 3
        )

    def begin(self, worker: int, span: int) -> None:
        """Note that a process works on a span, but on none of its images yet."""
        self._notes[worker, _IMAGE] = NOWHERE
        self._notes[worker, _SPAN] = span

    def note_image(self, worker: int, place: int) -> None:
        """Note which image of its span a process is decoding; NOWHERE for none."""
        self._notes[worker, _IMAGE] = place

    def image_of(self, worker: int) -> tuple[int, int]:
        """The span that a process was working on, and the place of the image that it was decoding, or NOWHERE."""
        span, place = self._notes[worker, : _IMAGE + 1].tolist()
        return span, place

    def forget(self, worker: int) -> None:
        """Clear the notes of a process that has ended."""
        self._notes[worker] = 0
        self._notes[worker, _IMAGE] = NOWHERE

    @contextmanager
    def raster(self, worker: int, size_bytes: int) -> Iterator[None]:
        """Wait until a raster of so many bytes fits beside those of the other processes, or until there is no other."""
        while not self._take(worker, size_bytes):
            time.sleep(_POLL_SECONDS)
        try:
            yield
        finally:
            self._notes[worker, _RASTER] = 0

    def _take(self, worker: int, size_bytes: int) -> bool:
        with locked(self._descriptor, _RASTER_LOCK):
            others = int(self._notes[:, _RASTER].sum())
            fits = others == 0 or others + size_bytes <= self._most_raster_bytes
            if fits:
                self._notes[worker, _RASTER] = size_bytes
        return fits

    def lock_large(self) -> None:
        """Wait until no other process holds an encoded image that is larger than its share."""
        lock(self._descriptor, _LARGE_LOCK)

    def unlock_large(self) -> None:
        """Let another process hold a large encoded image."""
        unlock(self._descriptor, _LARGE_LOCK)
