"""Plan many tars at once, in processes: each reads the headers and companions of one tar and answers with a table.

The tables come in the order of the tars, with the rows that one process would have given them. A process holds the
samples of one tar, and two tables for each process wait at most, so the memory does not depend on the number of tars.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import islice
from queue import SimpleQueue
from typing import IO, Any

import pyarrow as pa

from headspan import errors
from headspan.errors import HeadspanError, SourceError, counted
from headspan.events import Listener, Progress
from headspan.io.cores import cores
from headspan.io.interpreters import module_folders_line
from headspan.member_names import MemberNames
from headspan.shards.kinds import TAR, kind_of, refuse_unused
from headspan.shards.notes import NO_ROW
from headspan.shards.plan import no_images, scan
from headspan.shards.samples import BadImage, Shard
from headspan.store.tables import SAMPLES, table_of

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


def planned_tables(
    urls: Mapping[str, str],
    shards: list[Shard],
    notes: list[BadImage],
    on_progress: Listener,
    names: MemberNames,
    on_shard: Callable[[], None] = lambda: None,
) -> Generator[pa.Table, None, None]:
    """Yield the samples of each tar, in order; the shards and the notes on them are added to the lists.

    `on_shard` is called for each tar. It may raise an error to end the reading. Raises as `list_samples`.
    """
    refuse_unused(names, [TAR] * len(urls))
    images, fields = 0, Counter[str]()
    with ExitStack() as ended:
        idle: SimpleQueue[_Process] = SimpleQueue()
        count = min(cores(), len(urls))
        threads = ended.enter_context(ThreadPoolExecutor(count, "headspan-plan"))
        for _ in range(count):
            process = _Process()
            # Before the threads end, which may wait for an answer.
            ended.callback(process.kill)
            idle.put(process)
        left = iter(urls.items())
        waiting: deque[Future[Any]] = deque()
        ended.callback(lambda: threads.shutdown(wait=False, cancel_futures=True))
        for done in range(1, len(urls) + 1):
            for name, url in islice(left, 2 * count - len(waiting)):
                waiting.append(threads.submit(_ask, idle, (url, name, names)))
            shard, table, found, absent = waiting.popleft().result()
            on_shard()
            fields.update(absent)
            shards.append(replace(shard, first_row=images))
            notes += (note if note.row == NO_ROW else replace(note, row=note.row + images) for note in found)
            images += shard.images
            on_progress(Progress("plan", done, len(urls), counted(images, "image")))
            yield table
    if images == 0:
        raise no_images(urls, names, fields)


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
