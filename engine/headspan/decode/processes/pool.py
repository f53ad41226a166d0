"""Start decoding processes, give them spans, collect their answers, and restart those that end.

Processes are new interpreters that import nothing of the user's program; nothing is forked. They receive neither Ctrl-C
nor SIGTERM. Each ends when its connection is closed, and therefore with the launching process, however that ends.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
from collections import deque
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from headspan.decode.processes.messages import (
    SpanFailure,
    SpanRequest,
    SpanResult,
    WorkerSettings,
    receive,
    send,
)
from headspan.decode.processes.ring import NOWHERE, Ring
from headspan.errors import HeadspanError, one_line, shortened
from headspan.io.memory import close_file, empty_file, memory_file

# Spans that a worker has: one that it decodes, and one that it reads meanwhile.
DEPTH = 2
# An image is bad once it has ended so many processes.
_DEATHS_OF_AN_IMAGE = 2
# The run ends when so many processes in a row have ended while they decoded no image.
_DEATHS_OUTSIDE = 4
# How much of what a process printed is put into an error.
_TAIL_BYTES = 2_000
_MAIN = "from headspan.decode.processes.worker import main"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Each process decodes in one thread; libraries that start a thread for each core would only take memory.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

Answer = SpanResult | SpanFailure


class Worker:
    """One decoding process, which may end and be started again, and the spans that it has."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.requests: deque[SpanRequest] = deque()
        self.printed = memory_file()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def start(self) -> None:
        """Start the process, and send it the spans that it has. Raises HeadspanError if it cannot be started."""
        empty_file(self.printed)
        ours, theirs = socket.socketpair()
        settings = self.settings
        inherited = (theirs.fileno(), settings.ring, *settings.spools)
        script = f"import sys; sys.path[:] = {sys.path!r}; {_MAIN}; main({theirs.fileno()})"
        # The process inherits the mask: it never receives these signals, not even while it starts.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", script],  # type: ignore[attr-defined]
                pass_fds=inherited,
                stdin=subprocess.DEVNULL,
                stdout=self.printed,
                stderr=self.printed,
                env={**os.environ, **_ONE_THREAD},
            )
        except (OSError, ValueError, TypeError) as error:
            ours.close()
            raise HeadspanError(
                f"{sys.executable}: a decoding process cannot be started ({one_line(error)}); give fewer --workers, or "
                "free memory"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            theirs.close()
        self.connection = Connection(ours.detach())
        self._send(self.settings)
        for request in self.requests:
            self._send(request)

    def give(self, request: SpanRequest) -> None:
        """Send the worker another span."""
        self.requests.append(request)
        self._send(request)

    def free_spool(self) -> int:
        """The number of a spool that none of the worker's spans uses."""
        used = {request.spool for request in self.requests}
        return next(number for number in range(DEPTH) if number not in used)

    def _send(self, message: WorkerSettings | SpanRequest) -> None:
        assert self.connection is not None
        # If it has ended, its connection also says so when it is read.
        with suppress(OSError):
            send(self.connection, message)

    def last_words(self) -> str:
        """The end of what the process printed, on one line."""
        size = os.fstat(self.printed).st_size
        text = os.pread(self.printed, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
        return shortened(" ".join(text.split())[-500:])

    def end(self) -> int | None:
        """End the process, which writes nothing that must be kept. Returns its exit code."""
        if self.process is None:
            return None
        if self.connection is not None:
            self.connection.close()
        self.process.kill()
        return self.process.wait()

    def close(self) -> None:
        """End the process for good."""
        self.end()
        for descriptor in (self.printed, *self.settings.spools):
            close_file(descriptor)


class Pool:
    """The decoding processes of a run. A process starts when it gets its first span."""

    def __init__(self, settings: WorkerSettings, ring: Ring) -> None:
        """`settings` are those of any worker; its number and its spools are filled in here."""
        self._ring = ring
        self._workers = [
            Worker(replace(settings, worker=number, spools=tuple(memory_file() for _ in range(DEPTH))))
            for number in range(settings.workers)
        ]
        self._deaths: dict[tuple[int, int], int] = {}
        self._deaths_outside = 0
        self._selector = selectors.DefaultSelector()
        self._woken, self._waking = socket.socketpair()
        for end in (self._woken, self._waking):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def idlest(self) -> Worker | None:
        """The worker with the fewest spans, which can take another; None if all have as many as they may."""
        worker = min(self._workers, key=lambda worker: len(worker.requests))
        return worker if len(worker.requests) < DEPTH else None

    def give(self, worker: Worker, request: SpanRequest) -> None:
        """Let a worker decode a span. Raises HeadspanError if its process cannot be started."""
        if worker.process is None:
            worker.requests.append(request)
            self._start(worker)
        else:
            worker.give(request)

    def collect(self) -> list[Answer]:
        """Wait for an answer, or until another thread calls `wake`. Returns the answers that have arrived.

        Raises HeadspanError if processes end again and again without decoding an image.
        """
        answers: list[Answer] = []
        for key, _ in self._selector.select():
            if key.data is None:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
                continue
            worker: Worker = key.data
            assert worker.connection is not None
            try:
                answer: Answer = receive(worker.connection)
            except (EOFError, OSError):
                self._restart(worker)
                continue
            request = worker.requests.popleft()
            assert request.number == answer.number, "a worker answers in order"
            if request.is_spooled:
                empty_file(worker.settings.spools[request.spool])
            self._deaths_outside = 0
            answers.append(answer)
        return answers

    def wake(self) -> None:
        """Let the thread in `collect` return. Any thread may call this, also after `close`."""
        with suppress(OSError):
            self._waking.send(b"\0")

    def close(self) -> None:
        """End all processes."""
        self._selector.close()
        for worker in self._workers:
            # All at once; each is then waited for.
            if worker.process is not None:
                worker.process.kill()
        for worker in self._workers:
            worker.close()
        self._woken.close()
        self._waking.close()

    def _start(self, worker: Worker) -> None:
        worker.start()
        self._selector.register(worker.connection, selectors.EVENT_READ, worker)  # type: ignore[arg-type]

    def _restart(self, worker: Worker) -> None:
        """Start a process again that has ended, and find out whether an image ended it."""
        assert worker.connection is not None
        assert worker.process is not None
        self._selector.unregister(worker.connection)
        # It has closed its connection, so it has ended or is about to.
        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(timeout=5)
        ending = _ending(worker.end())
        span, place = self._ring.image_of(worker.settings.worker)
        self._ring.forget(worker.settings.worker)
        if worker.requests and place != NOWHERE and worker.requests[0].number == span:
            deaths = self._deaths[span, place] = self._deaths.get((span, place), 0) + 1
            if deaths == _DEATHS_OF_AN_IMAGE:
                first = worker.requests[0]
                reason = f"ended the process that decoded it {deaths} times ({ending})"
                worker.requests[0] = first._replace(reasons={**first.reasons, place: reason})
        else:
            self._deaths_outside += 1
            if self._deaths_outside == _DEATHS_OUTSIDE:
                raise HeadspanError(
                    f"{_DEATHS_OUTSIDE} decoding processes in a row ended ({ending}) while they decoded no image, the "
                    f"last after printing: {worker.last_words() or 'nothing'}; run the same command again to continue, "
                    "with fewer --workers if memory is short"
                )
        self._start(worker)


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, as if memory were short" if name == "SIGKILL" else name
