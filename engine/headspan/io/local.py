"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder.

A temporary name holds the token of its writer, so that what a killed writer left can be told from what another
one is writing.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c

from headspan.errors import StoreError

# What a file is called until it is whole, as a pattern.
TEMPORARY = ".*.tmp"
_CHECKSUM_STEP = 1 << 18
# Of <fcntl.h>, and Linux's alone.
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def new_token() -> str:
    """A name for a writer that no other has."""
    return secrets.token_hex(4)


def staged(path: Path, token: str) -> Path:
    """Where `path` lies until it is given its name."""
    return path.with_name(f".{path.name}.{token}.tmp")


def token_of(temporary: Path) -> str:
    """The token in a temporary name."""
    return temporary.name.split(".")[-2]


class StagedFile:
    """A file being written under `path`'s temporary name; what it raises is a StoreError where the disk refuses.

    Refused, or left by an exception where it is a context manager, no part of it stays behind.
    """

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self._temporary = staged(path, token)
        self._size = self._checksum = 0
        with refusals(path):
            make_folder(path.parent)
            self._file = self._temporary.open("wb", buffering=0)

    def __enter__(self) -> StagedFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.discard()

    def write(self, part: bytes | memoryview) -> None:
        """Append `part`; the disk begins with it at once, and its checksum is taken meanwhile."""
        with self._or_none():
            written = 0
            while written < len(part):
                written += self._file.write(part[written:])
            _start_writing(self._file.fileno(), self._size, len(part))
        self._size += len(part)
        self._checksum = _extend(self._checksum, part)

    def finish(self) -> tuple[int, int]:
        """Make the whole durable; returns its size in bytes and its crc32c."""
        with self._or_none():
            os.fsync(self._file.fileno())
            self._file.close()
        return self._size, self._checksum

    def close(self) -> None:
        """Write no more; what was written stays under its temporary name."""
        # There is nothing to tidy where even this is refused.
        with suppress(OSError):
            self._file.close()

    def discard(self) -> None:
        """Delete what was written."""
        self.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _or_none(self) -> Iterator[None]:
        try:
            with refusals(self._path):
                yield
        except BaseException:
            self.discard()
            raise


def stage(path: Path, parts: Iterable[bytes | memoryview], token: str) -> tuple[int, int]:
    """Write `parts` durably under `path`'s temporary name; returns the size in bytes and the crc32c.

    Raises StoreError where the disk refuses; whatever is raised, no part of a file stays behind.
    """
    with StagedFile(path, token) as file, refusals(path):
        for part in parts:
            file.write(part)
        return file.finish()


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], token: str = "") -> tuple[int, int]:
    """Write `parts` to `path`, in place of what was there; returns and raises as `stage` does."""
    token = token or new_token()
    found = stage(path, parts, token)
    try:
        with refusals(path):
            staged(path, token).replace(path)
            sync_folder(path.parent)
    finally:
        # Gone already if it was renamed.
        with suppress(OSError):
            staged(path, token).unlink(missing_ok=True)
    return found


def create_once(path: Path, data: bytes, token: str) -> bool:
    """Write `data` to `path` unless there is such a file; returns whether there was none."""
    stage(path, [data], token)
    try:
        with refusals(path):
            # Unlike a rename, a link never takes the place of another file.
            try:
                os.link(staged(path, token), path)
            except FileExistsError:
                return False
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            staged(path, token).unlink(missing_ok=True)
    return True


@contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the disk refuses, as a StoreError about `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); make room or choose another --out, then run the same "
            "command to go on"
        ) from error


def _start_writing(descriptor: int, first: int, size: int) -> None:
    """Have the disk begin with a part of a file now, not when it is waited for; without effect but on Linux."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, first, size, _SYNC_FILE_RANGE_WRITE)


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


def _without_consolidated(path: Path) -> bytes | None:
    """A group's metadata as they were before they were consolidated; None for any other file."""
    if path.name != "zarr.json":
        return None
    try:
        metadata = json.loads(path.read_bytes())
        del metadata["consolidated_metadata"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # As zarr-python writes it.
    return json.dumps(metadata, indent=2).encode()


def drop_consolidated(folder: Path) -> None:
    """Take the copy of what lies below out of a group's metadata, before what lies below changes."""
    data = _without_consolidated(folder / "zarr.json")
    if data is not None:
        write_atomically(folder / "zarr.json", [data])


def named(folder: Path, pattern: str) -> list[Path]:
    """The files of `folder` whose whole name matches the regular expression, in order; none where there is no folder.

    What operating systems and sync tools leave beside a file (`._name`, `name (1)`, `name~`) matches no planned name.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))


def faults(root: Path, files: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """Those of `files`, size and crc32c by their path in `root`, that are not as they were written, and how.

    A group's metadata to which `zarr.consolidate_metadata` has added a copy of what lies below count as they were.
    """
    for name, (size, crc) in files.items():
        if not (root / name).is_file():
            yield name, f"{name} is missing"
            continue
        found_size, found_crc = checksum(root / name)
        if (found_size, found_crc) != (size, crc):
            data = _without_consolidated(root / name)
            if data is not None and (len(data), google_crc32c.value(data)) == (size, crc):
                continue
        if found_size != size:
            yield name, f"{name} has {found_size} bytes, its record says {size}"
        elif found_crc != crc:
            yield name, f"{name} has changed since it was written (crc32c {found_crc:08x}, not {crc:08x})"
