"""Read images that are files: those of a folder, or those that a list names.

A file must have the size that was planned, and must not have been modified after all planned files; otherwise it has
changed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from headspan.errors import SourceError
from headspan.io.retry import LOCAL_ERRORS, unreadable
from headspan.shards.images import FILES, MISSING, Encoded, ImagePlace, ImageReader, Read, Wanted
from headspan.shards.reader import Place

NO_FILE = "there was no such file when the run was planned"


class FileImages(ImageReader):
    """Files, by their paths relative to the folder `root`."""

    needs_members = True

    def __init__(self, url: str, root: str, newest_ns: int | None) -> None:
        """No planned file was modified after `newest_ns`, in nanoseconds; None if any time is accepted."""
        super().__init__(url)
        self._root, self._newest_ns = root, newest_ns

    def place(self) -> ImagePlace:
        return ImagePlace(FILES, Place(self.url, str(Path(self._root).absolute()), 0), newest_ns=self._newest_ns)

    def close(self) -> None:
        """No file stays open."""

    def reads(self, wanted: Wanted, most_bytes: int) -> Iterator[Read]:
        for offset, size, member in zip(*wanted, strict=True):
            yield Read(1, size, lambda image=(offset, size, member): self._start(*image))  # type: ignore[misc]

    def _start(self, offset: int, size: int, member: str) -> Callable[[], Encoded]:
        found = Encoded.one(b"", NO_FILE) if offset == MISSING else Encoded.one(self._read(member, size))
        return lambda: found

    def _read(self, member: str, size: int) -> bytes:
        path = Path(self._root, member)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            try:
                what = change_of(os.fstat(descriptor), size, self._newest_ns)
                if what is not None:
                    raise SourceError(f"{self.url}: {member} {what}; restore it to continue, or choose another --out")
                # One byte more, since the file may be growing.
                data = os.read(descriptor, size + 1)
                while len(data) < size and (more := os.read(descriptor, size - len(data) + 1)):
                    data += more
            finally:
                os.close(descriptor)
        except FileNotFoundError as error:
            raise SourceError(
                f"{self.url}: {member} does not exist any more; restore it to continue, or choose another --out"
            ) from error
        except LOCAL_ERRORS as error:
            raise unreadable(str(path), error) from error
        if len(data) != size:
            raise SourceError(f"{self.url}: {member} changes while it is read; run again when it does not change")
        return data


def change_of(found: os.stat_result, size: int, newest_ns: int | None) -> str | None:
    """How a file differs from the planned one of `size` bytes; None if it does not, as far as size and time tell."""
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file any more"
    if found.st_size != size:
        return f"has changed since precompute read it ({found.st_size} bytes now, {size} bytes then)"
    if newest_ns is not None and found.st_mtime_ns > newest_ns:
        return "has changed since precompute read it (its time of modification differs)"
    return None


def image_change(root: str, member: str, offset: int, size: int, newest_ns: int | None) -> str | None:
    """As `change_of`, for the file `member` of a folder; a file that was missing is not compared."""
    if offset == MISSING:
        return None
    try:
        return change_of(Path(root, member).stat(), size, newest_ns)
    except FileNotFoundError:
        return "does not exist any more"
    except LOCAL_ERRORS as error:
        return f"cannot be read ({error})"
