"""Give spans to decoding processes, collect their answers, and restart processes that end."""

from __future__ import annotations

import selectors
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from headspan.decode.processes.messages import SpanFailure, SpanRequest, SpanResult, receive
from headspan.decode.processes.ring import NOWHERE, Ring
from headspan.decode.processes.worker_process import DEPTH, Worker
from headspan.errors import HeadspanError
from headspan.io.interpreters import signal_name
from headspan.io.memory import empty_file, opening

# An image is bad once it has ended so many processes.
_DEATHS_OF_AN_IMAGE = 2
# The run ends when so many processes in a row have ended while they decoded no image.
_DEATHS_OUTSIDE = 4

Answer = SpanResult | SpanFailure


class Pool:
    """The decoding processes of a run. A process starts when it gets its first span, if it was not started before."""

    def __init__(self, workers: Sequence[Worker], ring: Ring) -> None:
        """The pool does not end `workers`."""
        self._ring = ring
        self._workers = workers
        self._deaths: dict[tuple[int, int], int] = {}
        self._deaths_outside = 0
        self._stopped = False
        with opening(), ExitStack() as stack:
            self._selector = stack.enter_context(selectors.DefaultSelector())
            self._woken, self._waking = socket.socketpair()
            stack.pop_all()
        # Its number must not become another file's while a thread sends to it.
        self._waking_lock = threading.Lock()
        for end in (self._woken, self._waking):
            end.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        for worker in workers:
            if worker.connection is not None:
                self._selector.register(worker.connection, selectors.EVENT_READ, worker)

    def begin(self) -> None:
        """Begin a pass over spans, which are numbered anew."""
        self._deaths.clear()
        for worker in self._workers:
            # A process that ends before its first image must not be blamed on an image of another pass.
            self._ring.forget(worker.number)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called: nothing more is decoded."""
        return self._stopped

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

        Raises HeadspanError if processes end again and again without decoding an image. After `stop`, processes that
        have ended are not started again.
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
                if self._stopped:
                    return answers
                self._restart(worker)
                continue
            request = worker.requests.popleft()
            assert request.number == answer.number, "a worker answers in order"
            if request.is_spooled:
                empty_file(worker.spools[request.spool])
            self._deaths_outside = 0
            answers.append(answer)
        return answers

    def wake(self) -> None:
        """Let the thread in `collect` return. Any thread may call this, also after `close`."""
        with self._waking_lock, suppress(OSError):
            self._waking.send(b"\0")

    def stop(self) -> None:
        """Kill the processes, and let the thread in `collect` return. Any thread may call this, also after `close`."""
        self._stopped = True
        for worker in self._workers:
            worker.kill()
        self.wake()

    def close(self) -> None:
        """Close what the pool has opened, but not the workers. The thread that calls `collect` calls this."""
        self._selector.close()
        self._woken.close()
        with self._waking_lock:
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
        span, place = self._ring.image_of(worker.number)
        self._ring.forget(worker.number)
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


def end_all(workers: Sequence[Worker]) -> None:
    """End processes for good."""
    for worker in workers:
        # All at once; each is then waited for.
        worker.kill()
    for worker in workers:
        worker.close()


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    name = signal_name(code)
    return f"{name}, as if memory were short" if name == "SIGKILL" else name
