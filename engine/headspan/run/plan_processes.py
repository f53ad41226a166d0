"""Read many tars for a plan at once, in processes: each reads the headers and companions of one tar at a time.

The answers come in the order of the questions. A process holds the samples of one tar, and two tables for each process
wait at most, so the memory does not depend on the number of tars.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any

from headspan import errors
from headspan.errors import HeadspanError, SourceError
from headspan.io.cores import cores
from headspan.io.interpreters import module_folders_line
from headspan.member_names import MemberNames
from headspan.shards.kinds import TAR, kind_of
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage
from headspan.store.tables import SAMPLES, ReadShard, table_of

# With fewer tars, starting the processes takes longer than they save.
LEAST_TARS = 64
# Libraries may print, so answers have a descriptor of their own.
_BEGIN = """
import json, os, sys
out = os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from headspan.run.plan_processes import answer
answer(sys.stdin.buffer, out)
"""


def uses_processes(urls: Mapping[str, str]) -> bool:
    """Whether a plan over `urls` (by name) is read in processes: over many tars, none of which is a command."""
    return (
        cores() > 1
        and len(urls) >= LEAST_TARS
        and all(not url.startswith("pipe:") and kind_of(url) == TAR for url in urls.values())
    )


class TarReaders:
    """Processes that read tars, in a `with` block that ends them."""

    def __init__(self, tars: int, names: MemberNames) -> None:
        """As many processes as there are cores, but not more than `tars`. `names` tell images and captions."""
        self._count, self._names = min(cores(), tars), names
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        self._ended = ExitStack()

    def __enter__(self) -> TarReaders:
        with ExitStack() as ended:
            self._threads = ended.enter_context(ThreadPoolExecutor(self._count, "headspan-plan"))
            for _ in range(self._count):
                process = _Process()
                # Before the threads end, which may wait for an answer.
                ended.callback(process.kill)
                self._idle.put(process)
            ended.callback(lambda: self._threads.shutdown(wait=False, cancel_futures=True))
            self._ended = ended.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.close()

    def read(self, asked: Iterable[tuple[int, tuple[str, str]]]) -> Generator[tuple[int, ReadShard], None, None]:
        """Read tars, each given by any number and its name and url. Yields each number and what was read, in order.

        Raises as `scan`.
        """
        left = iter(asked)
        waiting: deque[tuple[int, Future[ReadShard]]] = deque()
        while True:
            for number, (name, url) in islice(left, 2 * self._count - len(waiting)):
                waiting.append((number, self._threads.submit(_ask, self._idle, (url, name, self._names))))
            if not waiting:
                return
            number, found = waiting.popleft()
            yield number, found.result()


def answer(asked: IO[bytes], out: IO[bytes]) -> None:
    """The main function of a process: scan tars until the input ends."""
    while True:
        try:
            url, name, names = pickle.load(asked)
        except EOFError:
            return
        try:
            notes: list[BadImage] = []
            fields: Counter[str] = Counter()
            shard, samples = scan(url, 0, notes.append, name, None, names, fields)
            found: Any = (shard, table_of(samples, SAMPLES), notes, fields)
        except HeadspanError as error:
            found = (type(error).__name__, str(error))
        pickle.dump(found, out, protocol=5)
        out.flush()


class _Process:
    """A new Python that answers questions."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-c", _BEGIN]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(module_folders_line())

    def ask(self, question: Any) -> Any:
        """Send a question and wait for the answer. Raises HeadspanError if the process has ended."""
        assert self._process.stdout is not None
        self._send(pickle.dumps(question))
        try:
            return pickle.load(self._process.stdout)
        except (EOFError, pickle.UnpicklingError) as error:
            raise HeadspanError(
                f"{question[1]}: the process that read it for the plan ended with exit code {self._process.wait()}; "
                "run the same command again"
            ) from error

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None
        # If the process is gone, there is no answer either.
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()


def _ask(idle: SimpleQueue[_Process], question: tuple[str, str, MemberNames]) -> Any:
    process = idle.get()
    try:
        found = process.ask(question)
    finally:
        idle.put(process)
    if len(found) == 2:
        kind, sentence = found
        raise getattr(errors, kind, SourceError)(sentence)
    return found
