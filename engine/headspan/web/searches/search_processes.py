"""Run searches in processes of their own, one for each core, up to eight.

A search is a sequence of many short NumPy operations. In threads of one process, each operation waits for Python's
global lock, so cores are idle; processes do not wait for one another. All of them read the server's sketches, which are
stored in memory files. The server searches itself while the sketches of a question are not built, while no process is
ready, and if the store is in a bucket.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from headspan.explore.nearest.search import Answer, Question, Sketches, answered_by, sketches_of
from headspan.explore.nearest.shared import Shared, shared
from headspan.store.reader import Store
from headspan.web.searches.messages import Asked
from headspan.web.state.child_process import started
from headspan.web.state.store_version import version_of
from headspan.web.state.worker_messages import READY

_MODULE = "headspan.web.searches.worker"
# Each takes some 100 MB of its own.
_MOST_PROCESSES = 8
# A process that takes longer for an answer is killed. After this many deaths, no further process is started.
_ANSWER_SECONDS, _MOST_DEATHS = 120.0, 5


class _Process:
    """One process, and what it has of the server's sketches."""

    def __init__(self) -> None:
        """Start it, and wait until it is ready. Raises EOFError or OSError if it ends."""
        self._connection, self._process = started(_MODULE)
        self._known: dict[int, weakref.ref[Any]] = {}
        try:
            if not self._connection.poll(_ANSWER_SECONDS) or self._connection.recv() != READY:
                raise EOFError
        except BaseException:
            self.close()
            raise

    def answer(
        self, path: Path, version: str, question: Question, sketches: Sketches, files: Sequence[Shared]
    ) -> Answer | None:
        """The answer; None if the process cannot give one. Raises EOFError or OSError if the process has ended."""
        # The server has deleted them.
        forgotten = [number for number, sketch in self._known.items() if sketch() is None]
        for number in forgotten:
            del self._known[number]
        new = {file: each for file, each in zip(files, sketches.every, strict=True) if file.number not in self._known}
        numbers, has_eight_bits = [file.number for file in files], sketches.eight_bits is not None
        self._connection.send(Asked(path, version, question, numbers, has_eight_bits, list(new), forgotten))
        for file, each in new.items():
            send_handle(self._connection, file.descriptor, self._process.pid)
            self._known[file.number] = weakref.ref(each)
        if not self._connection.poll(_ANSWER_SECONDS):
            raise EOFError
        found: Answer | None = self._connection.recv()
        return found

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._connection.close()


class SearchProcesses:
    """The processes of a server. Threads may share it."""

    def __init__(self, count: int | None = None) -> None:
        """`count` processes, by default one for each core, up to eight; the first question for them starts them."""
        self._count = count or min(os.cpu_count() or 1, _MOST_PROCESSES)
        self._changed = threading.Condition()
        self._starting = self._alive = self._deaths = 0
        self._idle: list[_Process] = []
        self._closed = False
        self._versions: WeakKeyDictionary[Store, str] = WeakKeyDictionary()

    def __enter__(self) -> SearchProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, store: Store, question: Question) -> Answer:
        """The answer to a question, by a process or, if none can answer, by this thread."""
        sketches = sketches_of(store, question)
        if sketches is not None:
            found = self._by_a_process(store, question, sketches)
            if found is not None:
                return found
        return answered_by(store, question, sketches)

    def close(self) -> None:
        """End all processes; questions are then answered by the threads that ask them."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._alive -= len(idle)
            self._changed.notify_all()
        for each in idle:
            each.close()

    def _by_a_process(self, store: Store, question: Question, sketches: Sketches) -> Answer | None:
        files = [file for each in sketches.every if (file := shared(each)) is not None]
        if len(files) < len(sketches.every) or not isinstance(store.path, Path):
            return None
        process = self._taken()
        if process is None:
            return None
        try:
            found = process.answer(store.path, self._version(store), question, sketches, files)
        except BaseException as error:
            self._gone(process)
            if isinstance(error, EOFError | OSError):
                return None
            raise
        self._given_back(process)
        return found

    def _taken(self) -> _Process | None:
        """Wait for an idle process and return it. Return None if no process is ready."""
        with self._changed:
            for _ in range(self._count - self._alive - self._starting):
                if self._closed or self._deaths >= _MOST_DEATHS:
                    break
                self._starting += 1
                threading.Thread(target=self._start, daemon=True, name="headspan-search").start()
            self._changed.wait_for(lambda: self._idle or not self._alive)
            return self._idle.pop() if self._idle else None

    def _start(self) -> None:
        try:
            process = _Process()
        except (EOFError, OSError):
            with self._changed:
                self._starting -= 1
                self._deaths += 1
            return
        with self._changed:
            self._starting -= 1
            self._alive += 1
        self._given_back(process)

    def _given_back(self, process: _Process) -> None:
        with self._changed:
            if not self._closed:
                self._idle.append(process)
                self._changed.notify()
                return
        self._gone(process)

    def _gone(self, process: _Process) -> None:
        process.close()
        with self._changed:
            self._alive -= 1
            self._deaths += 1
            self._changed.notify_all()

    def _version(self, store: Store) -> str:
        with self._changed:
            if store not in self._versions:
                self._versions[store] = version_of(store, "")
            return self._versions[store]
