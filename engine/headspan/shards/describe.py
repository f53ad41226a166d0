"""The size and modification time of each shard, as its source states them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path

from headspan.errors import SourceError
from headspan.io.retry import (
    LOCAL_ERRORS,
    calling_driver,
    file_system,
    is_remote,
    is_transient,
    retry,
    shown_cause,
    unreadable,
)
from headspan.member_names import MemberNames
from headspan.shards.file_plan import measured
from headspan.shards.kinds import FOLDER, LIST, kind_of
from headspan.shards.urls import local_path

# A server takes tens of milliseconds for each shard, and a plan may have tens of thousands.
_CONCURRENT_REQUESTS = 16
_ANY_NAMES = MemberNames()


def describe(url: str, names: MemberNames = _ANY_NAMES) -> tuple[int | None, int | None]:
    """Size in bytes and modification time in nanoseconds of the shard as stored; None where unknown.

    Of a folder or a list: the size of its files together, and the time of the one that was modified last. `names` tell
    which column of a list has the paths. Raises SourceError if there is no such file.
    """
    if url.startswith("pipe:"):
        return None, None
    if is_remote(url):
        return retry(lambda: _describe_remote(url))
    if (kind := kind_of(url)) in (FOLDER, LIST):
        return measured(url, names, kind == LIST)
    try:
        found = Path(local_path(url)).stat()
    except LOCAL_ERRORS as error:
        raise unreadable(url, error) from error
    return found.st_size, found.st_mtime_ns


def describe_each(urls: Iterable[str], names: MemberNames = _ANY_NAMES) -> Iterator[tuple[int | None, int | None]]:
    """`describe` of each url, in their order, with several requests to servers at once."""
    requests: deque[Future[tuple[int | None, int | None]]] = deque()
    for url in urls:
        if len(requests) == _CONCURRENT_REQUESTS:
            yield requests.popleft().result()
        requests.append(_request(url, names))
    while requests:
        yield requests.popleft().result()


def _request(url: str, names: MemberNames) -> Future[tuple[int | None, int | None]]:
    answer: Future[tuple[int | None, int | None]] = Future()

    def ask() -> None:
        try:
            answer.set_result(describe(url, names))
        # The thread that reads the answer raises it.
        except BaseException as error:
            answer.set_exception(error)

    if is_remote(url):
        # A daemon thread, so that a server that does not answer cannot keep the interpreter from ending.
        threading.Thread(target=ask, name="headspan-describe", daemon=True).start()
    else:
        try:
            answer.set_result(describe(url, names))
        except SourceError as error:
            answer.set_exception(error)
    return answer


def _describe_remote(url: str) -> tuple[int | None, int | None]:
    fs, path = file_system(url)
    with calling_driver(url):
        size = _storable(fs.info(path).get("size"))
    try:
        modified_ns = _storable(int(fs.modified(path).timestamp() * 1e9))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if is_transient(url, error):
            raise unreadable(url, error) from shown_cause(url, error)
        # The driver states no modification time.
        modified_ns = None
    return size, modified_ns


def _storable(number: object) -> int | None:
    """A driver's number if it is a count that fits a table's 64 bits, else None."""
    return number if type(number) is int and 0 <= number < 1 << 63 else None
