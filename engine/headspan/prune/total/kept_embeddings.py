"""A folder that keeps the embeddings of finished units, so that the same call continues after an interruption.

`embeddings.npy` has room for all images. A unit counts as finished when its line, with a checksum, is in `units.log`,
which one process at a time may write. `settings.json` says what was asked; a call that asks for something else is
refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from jaxtyping import Float32

from headspan.errors import StoreError, one_line
from headspan.events import NOTE, Listener, Progress
from headspan.io.array_file import ArrayFile
from headspan.io.files import make_folder, refusals, write_atomically
from headspan.io.locks import LockedLog, read_log

_SETTINGS, _EMBEDDINGS, _LOG = "settings.json", "embeddings.npy", "units.log"


class KeptEmbeddings:
    """Embeddings `[set, image, joint]` in a folder; in its `with` block, this process alone writes to it."""

    def __init__(
        self, folder: Path, shape: tuple[int, int, int], asked: Mapping[str, Any], on_progress: Listener
    ) -> None:
        """`asked` is what decides the numbers: JSON by what it is called in a sentence."""
        self._folder, self._shape, self._on_progress = folder, shape, on_progress
        self._asked: dict[str, Any] = json.loads(json.dumps(asked))
        self._log = LockedLog(folder / _LOG)
        self._file = ArrayFile(folder / _EMBEDDINGS, shape)

    def __enter__(self) -> KeptEmbeddings:
        """Raises StoreError if the folder cannot be written, or holds something else."""
        log = self._folder / _LOG
        with refusals(self._folder, "name another folder"):
            make_folder(self._folder)
            others = sorted(path.name for path in self._folder.iterdir())
            if others and not log.exists():
                raise StoreError(f"{self._folder}: holds {others[0]} and no embeddings of a call; name a new folder")
            log.open("ab").close()
        if (found := read_log(log)) is not None and found[0]:
            what = f"another process computes the embeddings in {self._folder}; waiting for it to end"
            self._on_progress(Progress(NOTE, 0, None, what))
        self._log.open()
        try:
            self._begin()
            self._file.open()
        except BaseException:
            self._log.close(delete=False)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
        self._log.close(delete=False)

    def _begin(self) -> None:
        path = self._folder / _SETTINGS
        if not path.exists():
            self._file.create()
            write_atomically(path, [json.dumps(self._asked, indent=1).encode()])
        try:
            kept: Any = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: cannot be read ({one_line(error)}); delete the folder to begin again") from error
        for name, wanted in self._asked.items():
            if not isinstance(kept, dict) or kept.get(name) != wanted:
                raise StoreError(
                    f"{self._folder}: holds the embeddings of a call with other {name}; repeat that call, or name "
                    "another folder"
                )
        if not self._file.whole:
            raise StoreError(f"{self._folder / _EMBEDDINGS}: is damaged; delete the folder to begin again")

    def finished(self, places: Mapping[int, slice]) -> set[int]:
        """The finished units, whose images are at `places`; one whose embeddings are damaged is not finished."""
        log = read_log(self._folder / _LOG)
        # The last line of a unit counts. A line may be torn if the machine was switched off.
        noted = {}
        for line in log[1] if log is not None else ():
            unit, _, crc32c = line.partition(" ")
            if unit.isdecimal():
                noted[int(unit)] = crc32c
        return {unit for unit, place in places.items() if noted.get(unit) == self._checksum(place)}

    def put(self, place: int, embeddings: Float32[np.ndarray, "set image joint"]) -> None:
        """Write the embeddings of images that begin at `place`. Raises StoreError if the disk is full."""
        _, images, joint = self._shape
        for number, rows in enumerate(embeddings):
            self._file.put((number * images + place) * joint, rows)

    def finish(self, unit: int, place: slice) -> None:
        """Note that a unit, whose images are at `place`, is finished, once its embeddings are durable."""
        self._file.sync()
        self._log.append(f"{unit} {self._checksum(place)}")

    def array(self) -> Float32[np.ndarray, "set image joint"]:
        """All embeddings, as a read-only memory map."""
        return self._file.array()

    def _checksum(self, place: slice) -> str:
        found = 0
        for rows in self.array():
            found = google_crc32c.extend(found, np.ascontiguousarray(rows[place]).view(np.uint8).ravel())
        return f"{found:08x}"
