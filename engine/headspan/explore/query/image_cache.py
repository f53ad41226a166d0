"""What models have computed from images, in the user's cache folder: a file for each image in `headspan/images-1/`.

Several processes may use the folder. A folder that cannot be read or written is ignored; a damaged file is deleted, and
its image computed again. Beyond 2 GiB, the files that were used least recently are deleted.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from headspan.errors import StoreError
from headspan.io.files import write_atomically
from headspan.user_paths import cache_folder

_MOST_BYTES = 2 << 30
# What np.load raises for a file that is cut off, or damaged in its headers or in its data, which zip files checksum.
_DAMAGED = (ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile)


def images_folder() -> Path:
    """The folder of cached images. Raises RuntimeError if the user has no home folder."""
    return cache_folder() / "images-1"


def find_image(key: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray] | None:
    """The arrays that were kept for `key`; None if there are none, or if one of `shapes` is missing or differs."""
    try:
        path = images_folder() / f"{key}.npz"
        with path.open("rb") as file:
            try:
                # No pickled objects are loaded.
                with np.load(file) as arrays:
                    found = {name: arrays[name] for name in arrays.files}
            except _DAMAGED:
                path.unlink(missing_ok=True)
                return None
        # The time of the last use; file systems seldom record reads.
        with suppress(OSError):
            os.utime(path)
    # The folder or the file does not exist, or cannot be read.
    except (OSError, RuntimeError):
        return None
    return found if all(name in found and found[name].shape == shape for name, shape in shapes.items()) else None


def keep_image(key: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keep `arrays` for `key`, and delete the files used least recently if the folder is too large."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    # No home folder, or a folder or disk that cannot be written.
    with suppress(OSError, RuntimeError, StoreError):
        folder = images_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # Readers find either the whole file or none.
        write_atomically(folder / f"{key}.npz", [data.getbuffer()])
        _delete_oldest(folder)


def _delete_oldest(folder: Path) -> None:
    """Delete files, with those that killed processes left, until the folder has at most `_MOST_BYTES`."""
    files = []
    for entry in os.scandir(folder):
        # Another process may have deleted it.
        with suppress(OSError):
            status = entry.stat()
            files.append((status.st_mtime_ns, status.st_size, entry.path))
    left = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if left <= _MOST_BYTES:
            return
        with suppress(OSError):
            Path(path).unlink()
            left -= size
