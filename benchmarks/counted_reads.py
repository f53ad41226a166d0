"""Count the requests and bytes that commands take on a store in a bucket: python -m benchmarks.counted_reads STORE.

A local store stands for one in a bucket, so that nothing waits. The time of requests follows from their number: those
of one step are sent side by side, up to 32 at once.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage

BUCKET = "s3://bucket"
COMMANDS = (
    "info STORE",
    "info STORE --heads",
    "runs STORE",
    "verify STORE",
    "votes STORE",
    "nearest STORE --image 3",
    "nearest STORE --text red",
    "segment STORE --image 3 --text red --out OUT.png",
    "heads STORE --text red",
    "spectra STORE",
    "features show STORE",
    "report STORE --out OUT.html",
)


class Requests(list[tuple[str, str, int]]):
    """What was requested: the kind of request, the key or folder, and the bytes of the answer."""

    @property
    def total_bytes(self) -> int:
        """The bytes of all answers."""
        return sum(size for *_, size in self)


class CountingStorage(PassingStorage):
    """A folder `run.zarr` as `s3://bucket/run.zarr`."""

    def __init__(self, url: str, folder: Path, requests: Requests) -> None:
        super().__init__(LocalStorage(folder / url.removeprefix(f"{BUCKET}/")))
        self._url, self._requests = url, requests

    def __str__(self) -> str:
        return self._url

    def get(self, key: str) -> bytes:
        return self._counted("get", key, self.inner.get(key))

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return self._counted("range", key, self.inner.get_range(key, start, size))

    def checksum(self, key: str) -> tuple[int, int]:
        found = self.inner.checksum(key)
        self._requests.append(("get", key, found[0]))
        return found

    def size(self, key: str) -> int | None:
        self._requests.append(("head", key, 0))
        return self.inner.size(key)

    def list(self, folder: str = "") -> Iterator[str]:
        self._requests.append(("list", folder, 0))
        return self.inner.list(folder)

    def listed(self, folder: str = "", without: Collection[str] = ()) -> Any:
        """As `ObjectStorage.listed`."""
        keys = (key for key in self.list(folder) if not key.startswith(tuple(f"{each}/" for each in without)))
        return [{"path": key, "size": self.inner.size(key)} for key in keys]

    def _counted(self, kind: str, key: str, found: bytes) -> bytes:
        self._requests.append((kind, key, len(found)))
        return found


def counting(folder: Path, requests: Requests) -> Any:
    """While this patch is active, `s3://bucket/NAME` is the folder NAME in `folder`, and requests are noted."""
    return patch("headspan.io.object_store.ObjectStorage", lambda url: CountingStorage(url, folder, requests))


def table(store: Path, commands: Sequence[str] = COMMANDS) -> str:
    """The requests and bytes of each command as a Markdown table."""
    from headspan.cli.main import main
    from headspan.store.reader import open_store

    requests = Requests()
    lines = ["| command | requests | of which listings | MB |", "|---|---|---|---|"]

    def note(name: str) -> None:
        kinds = Counter(kind for kind, *_ in requests)
        lines.append(f"| {name} | {len(requests):,} | {kinds['list']:,} | {requests.total_bytes / 1e6:,.1f} |")
        requests.clear()

    url = f"{BUCKET}/{store.name}"
    with counting(store.resolve().parent, requests), TemporaryDirectory() as folder:
        opened = open_store(url)
        note("`hs.open`")
        opened.head(opened.layers[-1], 0)
        note("`store.head` of one head, then")
        for command in commands:
            out = f"{folder}/{len(lines)}"
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                code = main([word.replace("STORE", url).replace("OUT", out) for word in command.split()])
            note(f"`{command.partition(' --out ')[0]}`" + (f" (exit code {code})" if code else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
