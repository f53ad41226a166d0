"""Write local files so that each is either complete or absent, even after a power failure.

A file is written under a temporary name, synced and renamed; then its folder is synced. The temporary name contains the
token of the writer. The token distinguishes files that a killed writer left from files that are still being written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c
import numpy as np

from headspan.errors import StoreError

# Final name and token within a temporary name.
_TEMPORARY = re.compile(r"\.(.+)\.([^.]+)\.tmp")
# From <fcntl.h>; only Linux has it.
_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None) if sys.platform == "linux" else None
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def new_token() -> str:
    """Return a random name for a writer, eight hexadecimal digits."""
    return secrets.token_hex(4)


def staged(path: Path, token: str) -> Path:
    """Return the temporary name under which the writer `token` writes the file `path`."""
    return path.with_name(f".{path.name}.{token}.tmp")


def final_name(path: Path) -> tuple[Path, str] | None:
    """Return what `staged` was called with to give `path`; None if `path` is not such a name."""
    found = _TEMPORARY.fullmatch(path.name)
    return (path.with_name(found[1]), found[2]) if found else None


class StagedFile:
    """A file that is being written under the temporary name of `path`.

    Methods raise StoreError if the file cannot be written; the temporary file is then deleted. As a context manager, it
    also deletes the temporary file when an exception ends the block.
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
        """Append `part`. The disk starts writing at once, and the checksum is computed meanwhile."""
        with self._or_discarded():
            written = 0
            while written < len(part):
                written += self._file.write(part[written:])
            _start_writing(self._file.fileno(), self._size, len(part))
        self._size += len(part)
        self._checksum = _extend(self._checksum, part)

    def finish(self) -> tuple[int, int]:
        """Make the file durable, still under its temporary name. Returns its size in bytes and its crc32c."""
        with self._or_discarded():
            os.fsync(self._file.fileno())
            self._file.close()
        return self._size, self._checksum

    def close(self) -> None:
        """Stop writing and keep the temporary file."""
        # An error while closing needs no action: the file is not used, or it is deleted next.
        with suppress(OSError):
            self._file.close()

    def discard(self) -> None:
        """Stop writing and delete the temporary file."""
        self.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    @contextmanager
    def _or_discarded(self) -> Iterator[None]:
        try:
            with refusals(self._path):
                yield
        except BaseException:
            self.discard()
            raise


def stage(path: Path, parts: Iterable[bytes | memoryview], token: str) -> tuple[int, int]:
    """Write `parts` durably under the temporary name of `path`. Returns the size in bytes and the crc32c.

    Raises StoreError if the file cannot be written. After any exception the temporary file is deleted.
    """
    with StagedFile(path, token) as file, refusals(path):
        for part in parts:
            file.write(part)
        return file.finish()


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], token: str = "") -> tuple[int, int]:
    """Write `parts` to `path`, replacing an earlier file. Returns and raises as `stage` does."""
    token = token or new_token()
    found = stage(path, parts, token)
    try:
        with refusals(path):
            staged(path, token).replace(path)
            sync_folder(path.parent)
    finally:
        # The temporary file no longer exists if it was renamed.
        with suppress(OSError):
            staged(path, token).unlink(missing_ok=True)
    return found


def create_once(path: Path, data: bytes, token: str) -> bool:
    """Write `data` to `path` unless that file exists. Returns whether it was written. Raises as `stage` does."""
    stage(path, [data], token)
    try:
        with refusals(path):
            # A link, unlike a rename, never replaces another file.
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
def refusals(path: Path, otherwise: str = "choose another --out") -> Iterator[None]:
    """Turn an OSError into a StoreError about `path`, which says what to do `otherwise`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}); free disk space and run the same command to continue, or "
            f"{otherwise}"
        ) from error


def _start_writing(descriptor: int, first: int, size: int) -> None:
    """Ask the kernel to start writing a part of a file, so that fsync waits less. Does so on Linux only."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, first, size, _SYNC_FILE_RANGE_WRITE)


def _extend(checksum: int, part: bytes | memoryview) -> int:
    # The package refuses memory views, but reads arrays without a copy, and lets other threads run meanwhile.
    return int(google_crc32c.extend(checksum, np.frombuffer(part, np.uint8))) if len(part) else checksum


def checksum(path: Path) -> tuple[int, int]:
    """Return the size in bytes and the crc32c of a file."""
    size, value = 0, 0
    with path.open("rb") as file:
        while block := file.read(8 << 20):
            size += len(block)
            value = google_crc32c.extend(value, block)
    return size, value


def memory_map(path: str | Path) -> np.ndarray:
    """Map a file into memory, read-only: `[bytes]`, uint8. An empty file gives an empty array."""
    # Without a file object, since a store may have thousands of shards.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if not os.fstat(descriptor).st_size:
            return np.empty(0, np.uint8)
        return np.frombuffer(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(descriptor)


def read_ahead(path: str | Path, starts: Sequence[int], size: int) -> None:
    """Ask the system to read `size` bytes from each of `starts` of a file into its cache; does not wait for them.

    A file that cannot be opened is left to whoever reads it.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start in starts:
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


def read_parts(path: str | Path, parts: Iterable[tuple[int, np.ndarray]]) -> None:
    """Fill each array, contiguous bytes, with what a file holds from an offset on.

    Raises StoreError if the file cannot be read or ends too early.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for offset, array in parts:
                left = array.data
                while left:
                    if not (count := os.preadv(descriptor, [left], offset)):
                        raise StoreError(f"{path}: ends before byte {offset + len(left):,}; run headspan verify")
                    left, offset = left[count:], offset + count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); run headspan verify") from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, each with a durable entry in its parent folder."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder. A file replaces an earlier file; a folder replaces only an empty folder.

    Raises OSError if that fails; errno is ENOTEMPTY or EEXIST if the target folder is not empty.
    """
    source.rename(target)


def delete_folder(folder: Path) -> None:
    """Delete a folder with its contents, if it exists. Errors are ignored."""
    shutil.rmtree(folder, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Make everything below `folder` durable: files first, then the folders that contain them."""
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            with (Path(path) / name).open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
