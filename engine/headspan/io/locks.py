"""Locks on local files and folders, which the system releases when their process ends."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from headspan.io.files import make_folder, refusals

# A log in which lines are replaced begins again at its start after so many bytes.
_LOG_BYTES = 1 << 13
_NUMBERED = re.compile(r"(\d+)\t(.*)")


class LockedLog:
    """A text file to which one process appends lines, and which that process locks while it is open.

    `open` and `append` raise StoreError if the file cannot be written. On a disk without locks it is written unlocked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        # Of the lines that `replace` writes: their number, where the next begins, and the bytes of the last.
        self._number = self._position = self._last = 0

    def open(self) -> None:
        """Create and lock the file."""
        with refusals(self._path):
            while self._descriptor < 0:
                make_folder(self._path.parent)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                _lock(descriptor)
                # Before it was locked, another process may have deleted the file as the log of a dead process.
                if self._path.exists() and self._path.stat().st_ino == os.fstat(descriptor).st_ino:
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)

    def append(self, line: str) -> None:
        """Append a line durably."""
        with refusals(self._path):
            os.lseek(self._descriptor, 0, os.SEEK_END)
            os.write(self._descriptor, f"{line}\n".encode())
            os.fsync(self._descriptor)

    def replace(self, line: str, durably: bool = True) -> None:
        """Write a line that stands for the whole log: `last_line` finds it, or the one before while it is written.

        The file stays small, and a line is never written over the one before it.
        """
        data = f"{self._number}\t{line}\n".encode()
        if self._position > _LOG_BYTES and self._position - self._last >= len(data):
            self._position = 0
        with refusals(self._path):
            os.pwrite(self._descriptor, data, self._position)
            if durably:
                os.fsync(self._descriptor)
        self._number, self._position, self._last = self._number + 1, self._position + len(data), len(data)

    def close(self, delete: bool) -> None:
        """Delete the file if `delete` is true, then release the lock."""
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


def last_line(lines: Iterable[str]) -> str | None:
    """Return the line of a log that `LockedLog.replace` wrote last; None if it wrote none."""
    numbered = [(int(match[1]), match[2]) for line in lines if (match := _NUMBERED.fullmatch(line))]
    return max(numbered)[1] if numbered else None


def reserve(path: Path, data: bytes) -> bool:
    """Create a file unless it exists; returns whether it was created. Only one of several processes creates it.

    It need not survive a power failure, and a process that is killed meanwhile may leave it empty. Raises StoreError if
    it cannot be written.
    """
    with refusals(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
    return True


@contextmanager
def alone(folder: Path, on_wait: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let only one process at a time run blocks with the same `folder`. On a disk without locks, nothing is locked.

    `on_wait` is called before this process waits for another one.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if _held_elsewhere(descriptor):
            on_wait()
            _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _held_elsewhere(descriptor: int) -> bool:
    """Acquire the lock if it is free; return whether another process holds it. A disk without locks has no holder."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(descriptor: int, wait: bool = True) -> bool:
    """Return whether the lock was acquired; False if another process holds it or the disk has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
