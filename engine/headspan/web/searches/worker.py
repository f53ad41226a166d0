"""A searching process: it answers one question at a time over a pipe, from sketches that it shares with the server.

`search_processes` starts it. It ends when the other end of the pipe is closed. It reads the stores itself, to score the
few images that the sketches leave.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from headspan.explore.nearest.search import Answer, Sketches, answered_by
from headspan.explore.nearest.shared import Shared, from_memory_file
from headspan.store.reader import Store
from headspan.web.allocator import share_one_heap
from headspan.web.searches.messages import Asked
from headspan.web.state.kept_on_disk import opened_with_cache
from headspan.web.state.store_version import version_of
from headspan.web.state.worker_messages import READY


class Worker:
    """Open stores, and the sketches of the server."""

    def __init__(self) -> None:
        self._stores: dict[Path, tuple[str, Store]] = {}
        self._sketches: dict[int, Any] = {}

    def take(self, new: Shared, descriptor: int) -> None:
        """Get a sketch from its memory file."""
        self._sketches[new.number] = from_memory_file(descriptor, new.pickled, new.spans)

    def answer(self, asked: Asked) -> Answer | None:
        """The answer; None if the store's files show other images than the server's."""
        for number in asked.forgotten:
            self._sketches.pop(number, None)
        store = self._store(asked.store, asked.version)
        if store is None:
            return None
        parts = [self._sketches[number] for number in asked.sketches]
        eight_bits = parts.pop() if asked.has_eight_bits else None
        return answered_by(store, asked.question, Sketches(parts, eight_bits))

    def _store(self, path: Path, version: str) -> Store | None:
        if path not in self._stores or self._stores[path][0] != version:
            store = opened_with_cache(path, 0)
            self._stores[path] = version_of(store, ""), store
        found, store = self._stores[path]
        return store if found == version else None


def main(descriptor: int) -> None:
    """Answer until the server closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    share_one_heap()
    threadpool_limits(1, "blas")
    worker, connection = Worker(), Connection(descriptor)
    # The server ends, or has been killed.
    with suppress(EOFError, OSError):
        connection.send(READY)
        while True:
            asked: Asked = connection.recv()
            for new in asked.new:
                file = recv_handle(connection)
                try:
                    worker.take(new, file)
                finally:
                    os.close(file)
            connection.send(_answer(worker, asked))


def _answer(worker: Worker, asked: Asked) -> Answer | None:
    try:
        return worker.answer(asked)
    # The server then searches itself, and says what is wrong.
    except Exception:
        return None


if __name__ == "__main__":
    main(int(sys.argv[1]))
