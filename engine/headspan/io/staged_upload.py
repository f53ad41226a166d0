"""Send an object to a bucket in parts while it is written, with bounded memory."""

from __future__ import annotations

import time
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


class StagedUpload:
    """An object that is sent in parts while it is written; it exists when `finish` returns."""

    def __init__(self, storage: Storage, key: str, place: str, open_writer: Callable[[], Any]) -> None:
        """`open_writer` returns obstore's file object for the object `place`; messages name the file `key`."""
        self._storage, self._key, self._place, self._open_writer = storage, key, place, open_writer
        self._size = self._checksum = 0
        self._part, self._filled = np.empty(0, np.uint8), 0
        # None once the object exists or never will. Nothing is requested before the first part is sent.
        self._writer = open_writer()
        self._begun = False

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
                    # obstore sends memory that it does not copy, so the caller's is copied, and each part is new.
                    self._send()
                    self._part, self._filled = np.empty(PART_BYTES, np.uint8), 0
                count = min(len(values), len(self._part) - self._filled)
                self._part[self._filled : self._filled + count] = values[:count]
                self._filled += count
                values = values[count:]

    def finish(self) -> Checksum:
        """Send the rest. The object then exists, with all its bytes."""
        with self._or_discarded():
            self._send()
            try:
                self._writer.close()
            except Exception as error:
                # The answer to the last request may have been lost; when it is repeated, the upload is unknown.
                lost = isinstance(error, FileNotFoundError) or is_transient(error)
                if not (lost and self._is_there()):
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

    def _send(self) -> None:
        if not self._filled:
            return
        part = self._part[: self._filled].data
        for seconds in WAIT_SECONDS:
            try:
                self._writer.write(part)
            except Exception as error:
                # Until an upload has begun, another one can be. obstore repeats the requests of one that has.
                if self._begun or not is_transient(error):
                    raise
                self.close()
                time.sleep(seconds)
                self._writer = self._open_writer()
            else:
                self._begun = True
                return
        self._writer.write(part)

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
