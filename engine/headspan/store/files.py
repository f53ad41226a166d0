"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import google_crc32c

from headspan.errors import StoreError

# What a file is called until it is whole, as a pattern.
TEMPORARY = ".*.tmp"
_CHECKSUM_STEP = 1 << 18


def write_atomically(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[int, int]:
    """Write `parts` to `path`; returns the size in bytes and the crc32c. StoreError where the disk refuses."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    size, checksum = 0, 0
    try:
        make_folder(path.parent)
        with temporary.open("wb") as file:
            for part in parts:
                file.write(part)
                size += len(part)
                checksum = _extend(checksum, part)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); make room or choose another --out, then run the same "
            "command to go on"
        ) from error
    finally:
        # Gone already if it was renamed; there is nothing to tidy where even this is refused.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return size, checksum


def _extend(checksum: int, part: bytes | memoryview) -> int:
    # The package takes nothing but bytes, so a view is copied, a cache's worth at a time.
    for start in range(0, len(part), _CHECKSUM_STEP):
        checksum = google_crc32c.extend(checksum, bytes(part[start : start + _CHECKSUM_STEP]))
    return checksum


def make_folder(folder: Path) -> None:
    """Make `folder` and what it lies in, each durably entered in its parent."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable, files before the folders that name them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(path) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: Path) -> tuple[int, int]:
    """Size in bytes and crc32c of a file."""
    size, value = 0, 0
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            size += len(block)
            value = google_crc32c.extend(value, block)
    return size, value
