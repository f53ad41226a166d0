"""Storage in a bucket of an object store: S3 and compatible servers, R2, GCS and Azure, through obstore.

A file is staged as an object below `records/staged/<token>/`, in parts while it is written, and published by a copy
within the server. A claim is a put that the server refuses if the object exists. If the answer to such a put is lost,
the object is read again, since it tells whose it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import google_crc32c

from headspan.errors import StoreError
from headspan.io.buckets import WAIT_SECONDS, ServerClock, client, is_transient, refusals
from headspan.io.files import new_token
from headspan.io.staged_upload import PART_BYTES, SENT_AT_ONCE, StagedUpload
from headspan.io.storage import UNLIMITED, Checksum
from headspan.io.unfinished_uploads import end_upload, unfinished_uploads

T = TypeVar("T")
# Within the class, `list` is the method of that name.
Keys = list[str]
Parts = list[bytes]
Listing = list[dict[str, Any]]

STAGED = "records/staged"
# What killed writers staged is deleted after this time, so that a put that is under way is not in vain.
LEFT_SECONDS = 3600.0
# Places that this process has found fit to write.
_fit: set[str] = set()


class ObjectStorage:
    """Implements `Storage` in the folder `url` of a bucket; `io.storage` describes the methods."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/")
        self.token = token or new_token()
        self._client = client(self.url)
        self._clock = ServerClock(self.url)

    def __str__(self) -> str:
        return self.url

    def put(self, key: str, parts: Iterable[bytes | memoryview]) -> Checksum:
        # An upload to its final name: the object is replaced when the upload is complete.
        with self._upload(key, key) as upload:
            for part in parts:
                upload.write(part)
            return upload.finish()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        def create() -> bool:
            try:
                self._obstore.put(self._client, key, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                # Perhaps by this writer, whose earlier request succeeded although no answer came.
                with suppress(FileNotFoundError):
                    return self.get(key) == data
                return False
            return True

        return self._call(key, "written", create)

    def stage(self, key: str) -> StagedUpload:
        return self._upload(key, _staged(key, self.token))

    def publish(self, key: str, token: str) -> bool:
        try:
            self._copy(_staged(key, token), key)
        except FileNotFoundError:
            return False
        self.discard(key, token)
        return True

    def discard(self, key: str, token: str) -> None:
        # What cannot be deleted now is deleted an hour later, as what killed writers staged.
        with suppress(StoreError):
            self.delete(_staged(key, token))

    def staged(self) -> Iterator[tuple[str, str]]:
        for key in self.list(STAGED):
            token, _, name = key.removeprefix(f"{STAGED}/").partition("/")
            if name:
                yield name, token

    def get(self, key: str) -> bytes:
        def read() -> bytes:
            found = self._obstore.get(self._client, key)
            if (size := found.meta["size"]) <= PART_BYTES:
                return bytes(found.bytes())
            return b"".join(self._ranges(key, 0, size))

        return self._call(key, "read", read)

    def get_range(self, key: str, start: int, size: int) -> bytes:
        def read() -> bytes:
            try:
                return bytes(self._obstore.get_range(self._client, key, start=start, length=size))
            except Exception as error:
                # The range begins after the end of the file.
                if "416" in str(error) and self._size(key) <= start:
                    return b""
                raise

        return self._call(key, "read", read) if size else b""

    def size(self, key: str) -> int | None:
        try:
            return self._call(key, "read", lambda: self._size(key))
        except FileNotFoundError:
            return None

    def modified(self, key: str) -> float | None:
        try:
            found = self._call(key, "read", lambda: self._obstore.head(self._client, key))
        except FileNotFoundError:
            return None
        return float(found["last_modified"].timestamp())

    def now(self) -> float:
        return self._clock.now()

    def checksum(self, key: str) -> Checksum:
        def read() -> Checksum:
            size, value = self._size(key), 0
            step = 4 * PART_BYTES
            for start in range(0, size, step):
                for part in self._ranges(key, start, min(size, start + step)):
                    value = google_crc32c.extend(value, part)
            return size, value

        return self._call(key, "read", read)

    def list(self, folder: str = "") -> Iterator[str]:
        yield from (found["path"] for found in self.listed(folder))

    def listed(self, folder: str = "", without: Collection[str] = ()) -> Listing:
        """List the files below `folder`, each with `path`, `size` and `last_modified`.

        Files below the folders `without` are left out, which saves requests if they are thousands.
        """

        def read() -> Listing:
            found: Listing = []
            after, stops = None, [f"{each}/" for each in sorted(without)]
            while True:
                stop = stops.pop(0) if stops else None
                for each in self._after(folder, after):
                    # Buckets list in the order of keys.
                    if stop is not None and each["path"] > stop:
                        break
                    found.append(each)
                if stop is None:
                    return found
                # After all names that a planned file has.
                after = f"{stop}~"

        return self._call(folder, "listed", read)

    def delete(self, key: str) -> None:
        self._delete([key])

    def move_folder(self, source: str, target: str) -> None:
        if any(True for _ in self.list(target)):
            raise FileExistsError(f"{self}/{target}")
        # The folder's own metadata are copied last and deleted first, so that a half-copied folder is no group.
        keys = sorted(self.list(source), key=lambda key: (key == f"{source}/zarr.json", key))
        if not keys:
            raise FileNotFoundError(f"{self}/{source}")
        try:
            for key in keys:
                self._copy(key, f"{target}/{key.removeprefix(f'{source}/')}")
        except BaseException:
            self.delete_folder(target)
            raise
        self._delete(keys[::-1])

    def folder_age(self, folder: str) -> float:
        times = [found["last_modified"].timestamp() for found in self.listed(folder)]
        return max(0.0, self.now() - max(times)) if times else 0.0

    def delete_folder(self, folder: str) -> None:
        with suppress(StoreError):
            self._delete(sorted(self.list(folder), key=lambda key: (key != f"{folder}/zarr.json", key)))

    def free_bytes(self) -> int:
        return UNLIMITED

    def refuse_unfit(self) -> None:
        """Raise StoreError if this user cannot write here, or if the server does not put objects on condition.

        The answer is remembered for the life of the process.
        """
        if self.url in _fit:
            return
        key = _staged("probe", self.token)
        try:
            # A server that ignores the condition succeeds twice; one that does not know it refuses both.
            fit = self.put_if_absent(key, b"1") and not self.put_if_absent(key, b"2")
        except StoreError as error:
            if "NotImplemented" not in str(error) and "501" not in str(error):
                raise
            fit = False
        finally:
            with suppress(StoreError):
                self.delete(key)
        if not fit:
            raise StoreError(
                f"{self}: this server does not put objects on condition (If-None-Match), so several writers could "
                "overwrite each other; use a server that does, such as S3, R2, MinIO, GCS or Azure, or a local folder"
            )
        _fit.add(self.url)

    def remove_abandoned(self, living: Collection[str] = ()) -> None:
        """Delete staged files and unfinished uploads that are older than an hour, but those of `living` tokens.

        What cannot be deleted is left to the next process that is asked.
        """
        with suppress(StoreError):
            before = self.now() - LEFT_SECONDS
            old = [found["path"] for found in self.listed(STAGED) if found["last_modified"].timestamp() < before]
            self._delete([key for key in old if _token(key) not in living])
            for key, upload, began in unfinished_uploads(self.url):
                if began < before and _token(key) not in living:
                    end_upload(self.url, key, upload)

    def _upload(self, key: str, place: str) -> StagedUpload:
        def open_writer() -> Any:
            return self._obstore.open_writer(self._client, place, buffer_size=PART_BYTES, max_concurrency=SENT_AT_ONCE)

        def put_whole(data: memoryview) -> None:
            self._call(key, "written", lambda: self._obstore.put(self._client, place, data, use_multipart=False))

        return StagedUpload(self, key, place, open_writer, put_whole)

    def _copy(self, source: str, target: str) -> None:
        self._call(target, "written", lambda: self._obstore.copy(self._client, source, target))

    def _delete(self, keys: Keys) -> None:
        def delete() -> None:
            # Some servers refuse to delete what does not exist.
            with suppress(FileNotFoundError):
                self._obstore.delete(self._client, keys)

        if keys:
            self._call(keys[0], "deleted", delete)

    def _after(self, folder: str, key: str | None) -> Iterator[dict[str, Any]]:
        """List the files below `folder` whose keys come after `key`."""
        for some in self._obstore.list(self._client, folder or None, offset=key):
            yield from some

    def _size(self, key: str) -> int:
        return int(self._obstore.head(self._client, key)["size"])

    def _ranges(self, key: str, start: int, end: int) -> Parts:
        starts = [*range(start, end, PART_BYTES)]
        ends = [min(each + PART_BYTES, end) for each in starts]
        return [
            bytes(part) for part in self._obstore.get_ranges(self._client, key, starts=starts, ends=ends, coalesce=0)
        ]

    @property
    def _obstore(self) -> Any:
        import obstore

        return obstore

    def _call(self, key: str, what: str, operation: Callable[[], T]) -> T:
        """Return what an operation that may be repeated returns. Raises StoreError, or FileNotFoundError."""
        with refusals(self.url, key, what):
            for seconds in WAIT_SECONDS:
                try:
                    return operation()
                except Exception as error:
                    if not is_transient(error):
                        raise
                time.sleep(seconds)
            return operation()


def _token(staged: str) -> str:
    """Return the token in the key of a staged file; of another file, which no writer sends for an hour, none."""
    return staged.removeprefix(f"{STAGED}/").partition("/")[0] if staged.startswith(f"{STAGED}/") else ""


def _staged(key: str, token: str) -> str:
    return f"{STAGED}/{token}/{key}"
