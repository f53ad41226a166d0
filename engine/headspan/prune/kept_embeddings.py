"""A folder that keeps the embeddings of finished units, so that the same call continues after an interruption.

`embeddings.npy` has room for all images. A unit counts as finished when its line, with a checksum, is in `units.log`,
which one process at a time may write. `settings.json` says what was asked; a call that asks for something else is
refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Float32

from headspan.errors import StoreError
from headspan.events import NOTE, Listener, Progress
from headspan.io.files import new_token, staged, sync_folder, write_atomically
from headspan.io.locks import LockedLog, read_log

_SETTINGS, _EMBEDDINGS, _LOG = "settings.json", "embeddings.npy", "units.log"


class KeptEmbeddings:
    """Embeddings `[set, image, joint]` in a folder; in its `with` block, this process alone writes to it."""

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], asked: Mapping[str, Any], on_progress: Listener
    ) -> None:
        """`asked` is what decides the numbers, as JSON by what it is called in a sentence."""
        self._folder, self._shape, self._on_progress = folder, shape, on_progress
        self._asked: dict[str, Any] = json.loads(json.dumps(asked))
        self._log = LockedLog(folder / _LOG)
        self._descriptor = -1
        self._offset = len(_header(shape))

    def __enter__(self) -> KeptEmbeddings:
        """Raises StoreError if the folder cannot be written, or holds the embeddings of another call."""
        with _refusals(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            others = [path.name for path in self._folder.iterdir() if path.name not in (_SETTINGS, _EMBEDDINGS, _LOG)]
            if others and not self._has(_LOG):
                raise StoreError(
                    f"{self._folder}: holds {others[0]}, so embeddings are not kept there; give a new folder"
                )
            # What cannot be written is found out before the pass.
            (self._folder / _LOG).open("ab").close()
        if (found := read_log(self._folder / _LOG)) is not None and found[0]:
            what = f"another process computes embeddings in {self._folder}; waiting for it to end"
            self._on_progress(Progress(NOTE, 0, None, what))
        self._log.open()
        try:
            self._begin()
        except BaseException:
            self._log.close(delete=False)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._descriptor)
        self._log.close(delete=False)

    def _has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def _begin(self) -> None:
        path = self._folder / _EMBEDDINGS
        if not self._has(_SETTINGS):
            token = new_token()
            with _refusals(path):
                with staged(path, token).open("wb") as file:
                    file.write(_header(self._shape))
                    file.truncate(self._offset + 4 * int(np.prod(self._shape)))
                staged(path, token).replace(path)
                sync_folder(path.parent)
            write_atomically(self._folder / _SETTINGS, [json.dumps(self._asked, indent=1).encode()])
        kept = self._settings()
        for name in {**kept, **self._asked}:
            if kept.get(name) != self._asked.get(name):
                raise StoreError(
                    f"{self._folder}: holds embeddings of another call, with other {name}; repeat that call, or give "
                    "another folder"
                )
        with _refusals(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def _settings(self) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / _SETTINGS).read_bytes())
            size = (self._folder / _EMBEDDINGS).stat().st_size
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._folder}: is damaged ({error}); delete it to compute all units again") from error
        if not isinstance(found, dict) or size < self._offset:
            raise StoreError(f"{self._folder}: is damaged; delete it to compute all units again")
        return found

    def finished(self, places: Mapping[int, slice]) -> set[int]:
        """The finished units, whose images are at `places`; one whose embeddings are damaged is not finished."""
        log, found = read_log(self._folder / _LOG), set()
        for line in log[1] if log is not None else ():
            match line.split():
                case [unit, crc32c] if unit.isdecimal() and int(unit) in places:
                    if crc32c == f"{self._checksum(places[int(unit)]):08x}":
                        found.add(int(unit))
                    else:
                        found.discard(int(unit))
        return found

    def put(self, place: int, embeddings: Float32[np.ndarray, "set image joint"]) -> None:
        """Write the embeddings of images that begin at `place`. Raises StoreError if the disk is full."""
        _, images, joint = self._shape
        with _refusals(self._folder / _EMBEDDINGS):
            for number, rows in enumerate(embeddings):
                at = self._offset + 4 * joint * (number * images + place)
                left = memoryview(np.ascontiguousarray(rows, "<f4").tobytes())
                while left:
                    written = os.pwrite(self._descriptor, left, at)
                    left, at = left[written:], at + written

    def finish(self, unit: int, places: slice) -> None:
        """Make the embeddings of a unit durable; then note that it is finished."""
        with _refusals(self._folder / _EMBEDDINGS):
            os.fsync(self._descriptor)
        self._log.append(f"{unit} {self._checksum(places):08x}")

    def array(self) -> Float32[np.ndarray, "set image joint"]:
        """All embeddings, as a read-only memory map."""
        found: np.ndarray = np.load(self._folder / _EMBEDDINGS, mmap_mode="r")
        return found

    def _checksum(self, places: slice) -> int:
        found = 0
        for rows in self.array():
            found = google_crc32c.extend(found, np.ascontiguousarray(rows[places]).view(np.uint8).ravel())
        return int(found)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn an OSError into a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); free disk space and repeat the same call to continue, or "
            "keep embeddings in another folder"
        ) from error


def _header(shape: Sequence[int]) -> bytes:
    file = BytesIO()
    description = {"descr": "<f4", "fortran_order": False, "shape": tuple(shape)}
    np.lib.format.write_array_header_1_0(file, description)
    return file.getvalue()
