"""Storage in a local folder, or on a shared disk that offers links, renames and fsync."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from headspan.errors import StoreError
from headspan.io.files import (
    StagedFile,
    checksum,
    create_once,
    delete_folder,
    final_name,
    move,
    new_token,
    refusals,
    staged,
    sync_folder,
    write_atomically,
)
from headspan.io.storage import Checksum


class LocalStorage:
    """Implements `Storage` in the folder `root`; `io.storage` describes the methods."""

    def __init__(self, root: Path, token: str = "") -> None:
        self.root = root
        self.token = token or new_token()

    def __str__(self) -> str:
        return str(self.root)

    def put(self, key: str, parts: Iterable[bytes | memoryview]) -> Checksum:
        return write_atomically(self.root / key, parts, self.token)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return create_once(self.root / key, data, self.token)

    def stage(self, key: str) -> StagedFile:
        return StagedFile(self.root / key, self.token)

    def publish(self, key: str, token: str) -> bool:
        path, found = self.root / key, True
        with refusals(path):
            try:
                staged(path, token).replace(path)
            except FileNotFoundError:
                found = False
            # Another process may have renamed the file and not yet made that durable.
            if path.parent.is_dir():
                sync_folder(path.parent)
        return found

    def discard(self, key: str, token: str) -> None:
        self._unlink(staged(self.root / key, token))

    def staged(self) -> Iterator[tuple[str, str]]:
        for key in self.list():
            if found := final_name(Path(key)):
                yield str(found[0]), found[1]

    def get(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def get_range(self, key: str, start: int, size: int) -> bytes:
        with (self.root / key).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def size(self, key: str) -> int | None:
        try:
            found = (self.root / key).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def modified(self, key: str) -> float | None:
        try:
            return (self.root / key).stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return None

    def now(self) -> float:
        return time.time()

    def checksum(self, key: str) -> Checksum:
        return checksum(self.root / key)

    def list(self, folder: str = "") -> Iterator[str]:
        top = str(self.root / folder)

        def refuse(error: OSError) -> None:
            # Folders below that cannot be read, such as lost+found, hold no file of the store.
            if error.filename == top and not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise StoreError(f"{top}: cannot be listed ({error.strerror}); correct its permissions") from error

        # Once, and not for each folder, where it would take a third of the time.
        place = os.path.relpath(top, self.root)
        for path, _, names in os.walk(top, onerror=refuse):
            here = "/".join(filter(None, ("" if place == "." else place, path[len(top) :].lstrip("/"))))
            yield from (f"{here}/{name}" for name in names) if here else names

    def times(self, folder: str) -> dict[str, float]:
        # A file may be deleted after it was listed.
        return {key: when for key in self.list(folder) if (when := self.modified(key)) is not None}

    def delete(self, key: str) -> None:
        self._unlink(self.root / key)

    def move_folder(self, source: str, target: str) -> None:
        # `folder_age` reads the modification time. Only the folder's owner may set it.
        with suppress(OSError):
            os.utime(self.root / source)
        try:
            move(self.root / source, self.root / target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if any(True for _ in self.list(target)):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.root / target)) from error
            # Folders without files, as an interrupted deletion leaves them, are in the way of the rename.
            self._remove_empty(target)
            move(self.root / source, self.root / target)

    def folder_age(self, folder: str) -> float:
        try:
            return time.time() - (self.root / folder).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def delete_folder(self, folder: str) -> None:
        delete_folder(self.root / folder)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def _remove_empty(self, folder: str) -> None:
        for path, _, _ in os.walk(self.root / folder, topdown=False):
            # Unlike `delete_folder`, this never deletes a file that another process puts there meanwhile.
            with suppress(OSError):
                Path(path).rmdir()

    def _unlink(self, path: Path) -> None:
        with refusals(path):
            path.unlink(missing_ok=True)
