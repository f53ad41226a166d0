"""Locks on local files and folders, which the system releases when their process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headspan.io.files import make_folder, refusals


class LockedLog:
    """A text file that its process appends lines to and keeps locked as long as it is open.

    Methods raise StoreError if the disk refuses. On a disk without locks the file is written all the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def open(self) -> None:
        """Create and lock the file."""
        with refusals(self._path):
            while self._descriptor < 0:
                make_folder(self._path.parent)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                _lock(descriptor)
                # Before the lock was held, another process may have taken the file for a dead one's and deleted it.
                if self._path.exists() and self._path.stat().st_ino == os.fstat(descriptor).st_ino:
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)

    def append(self, line: str) -> None:
        """Append a line durably."""
        with refusals(self._path):
            os.write(self._descriptor, f"{line}\n".encode())
            os.fsync(self._descriptor)

    def close(self, delete: bool) -> None:
        """Release the lock; before that, delete the file if `delete` is true."""
        if delete:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1


def read_log(path: Path) -> tuple[bool, list[str]] | None:
    """Return whether a living process has the log open, and its lines; None if the log cannot be opened.

    On a disk without locks every log counts as open.
    """
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return not _lock(descriptor, wait=False), path.read_text().splitlines()
    except FileNotFoundError:
        return None
    finally:
        os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes out of blocks with the same `folder`, if the disk offers locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = True) -> bool:
    """Return whether the lock was acquired; False if another process holds it or the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
