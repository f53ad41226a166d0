"""Send an object to a bucket in parts while it is written, with bounded memory."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import google_crc32c
import numpy as np

from headspan.errors import StoreError
from headspan.io.buckets import WAIT_SECONDS, is_transient, refusals
from headspan.io.storage import Checksum, Storage

# Servers accept parts from 5 MiB on, and at most 10,000 of them.
PART_BYTES = 8 << 20
# Parts of one object that are sent at the same time.
SENT_AT_ONCE = 2
# Memory of parts that were sent, for the next ones: memory that is new to the process costs more time than the copy.
_FREE_PARTS = 16
_free: deque[np.ndarray] = deque(maxlen=_FREE_PARTS)


class StagedUpload:
    """An object that is sent in parts while it is written; it exists when `finish` returns."""

    def __init__(
        self,
        storage: Storage,
        key: str,
        place: str,
        open_writer: Callable[[], Any],
        put_whole: Callable[[memoryview], None],
    ) -> None:
        """`open_writer` returns obstore's file object for the object `place`, and `put_whole` sends it in one request.

        Messages name the file `key`.
        """
        self._storage, self._key, self._place = storage, key, place
        self._open_writer, self._put_whole = open_writer, put_whole
        self._size = self._checksum = 0
        self._part, self._filled = np.empty(0, np.uint8), 0
        # Opened when the first part is sent. None again once the object exists or never will.
        self._writer: Any = None

    def __enter__(self) -> StagedUpload:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.discard()

    def write(self, part: bytes | memoryview) -> None:
        """Append `part`. Whole parts are sent while later ones are written."""
        values = np.frombuffer(part, np.uint8)
        if not len(values):
            return
        self._checksum = int(google_crc32c.extend(self._checksum, values))
        self._size += len(values)
        with self._or_discarded():
            while len(values):
                if self._filled == len(self._part):
                    # obstore sends memory that it does not copy, so the caller's is copied.
                    self._send()
                    self._part, self._filled = self._new_part(), 0
                count = min(len(values), len(self._part) - self._filled)
                self._part[self._filled : self._filled + count] = values[:count]
                self._filled += count
                values = values[count:]

    def finish(self) -> Checksum:
        """Send the rest. The object then exists, with all its bytes."""
        with self._or_discarded():
            if self._writer is None:
                self._put_whole(_lent(self._part, self._filled))
            else:
                self._send()
                try:
                    self._writer.close()
                except Exception:
                    # The upload may have succeeded although its answer was lost: then obstore's next request fails,
                    # which may be the one that ends the upload.
                    if not self._is_there():
                        raise
                self._writer = None
        return self._size, self._checksum

    def close(self) -> None:
        """Stop writing. An object that is not finished never exists."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(Exception):
                # This aborts the upload.
                writer.__exit__(InterruptedError, InterruptedError(), None)

    def discard(self) -> None:
        """Stop writing, and delete what was staged."""
        self.close()
        if self._place != self._key:
            with suppress(StoreError):
                self._storage.delete(self._place)

    def _new_part(self) -> np.ndarray:
        """Return memory for one part that nobody uses."""
        while _free:
            try:
                part = _free.pop()
            except IndexError:
                # Another thread took the last one.
                break
            if len(part) == PART_BYTES:
                return part
        return np.empty(PART_BYTES, np.uint8)

    def _send(self) -> None:
        if not self._filled:
            return
        part = _lent(self._part, self._filled)
        if self._writer is None:
            self._begin(part)
        else:
            self._writer.write(part)

    def _begin(self, part: memoryview) -> None:
        """Begin an upload with its first part. Until one has begun, another one can be; obstore repeats the rest."""
        for seconds in (*WAIT_SECONDS, None):
            self._writer = self._open_writer()
            try:
                self._writer.write(part)
                return
            except Exception as error:
                if seconds is None or not is_transient(error):
                    raise
            self.close()
            time.sleep(seconds)

    def _is_there(self) -> bool:
        with suppress(FileNotFoundError):
            return self._storage.checksum(self._place) == (self._size, self._checksum)
        return False

    @contextmanager
    def _or_discarded(self) -> Iterator[None]:
        try:
            with refusals(str(self._storage), self._key, "written"):
                try:
                    yield
                except FileNotFoundError as error:
                    # The server has ended the upload.
                    raise InterruptedError(str(error)) from None
        except BaseException:
            self.discard()
            raise


def _lent(part: np.ndarray, size: int) -> memoryview:
    """Return the first `size` bytes of a part. Its memory is free again when nobody has what is returned any more."""
    view = part[:size]
    # obstore keeps the view until the server has the part, or the upload has ended.
    weakref.finalize(view, _free.append, part).atexit = False
    return view.data
