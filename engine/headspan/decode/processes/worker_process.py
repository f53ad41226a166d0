"""One decoding process as the launching process sees it: started, given spans, and started again when it has ended.

Processes are new interpreters that import nothing of the user's program; nothing is forked. They receive neither Ctrl-C
nor SIGTERM. Each ends when its connection is closed, and therefore with the launching process, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from contextlib import ExitStack, suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from headspan.decode.processes.messages import SpanRequest, WorkerSettings, send
from headspan.errors import HeadspanError, one_line, shortened
from headspan.io.interpreters import blocked, module_folders
from headspan.io.memory import close_file, empty_file, memory_file, opening

# Spans that a worker has: one that it decodes, and one that it reads meanwhile.
DEPTH = 2
# Files that the launching process has open for a worker: its spools, what it prints, and its connection.
FILES = DEPTH + 2
# How much of what a process printed is put into an error.
_TAIL_BYTES = 2_000
_MAIN = "from headspan.decode.processes.worker import main"
# Each process decodes in one thread; libraries that start a thread for each core would only take memory.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Worker:
    """One decoding process, which may end and be started again, and the spans that it has."""

    def __init__(self, number: int, ring: int) -> None:
        """Worker `number` of a run, whose memory file `ring` may still be empty."""
        self.number, self._ring = number, ring
        with ExitStack() as stack:
            files = []
            for _ in range(DEPTH + 1):
                files.append(memory_file())
                stack.callback(close_file, files[-1])
            stack.pop_all()
        self._printed, *spools = files
        self.spools = tuple(spools)
        self.requests: deque[SpanRequest] = deque()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None
        self._settings: WorkerSettings | None = None

    def configure(self, settings: WorkerSettings) -> None:
        """Give the worker its settings, which are those of any worker but for its number and its memory files."""
        self._settings = replace(settings, worker=self.number, ring=self._ring, spools=self.spools)
        if self.process is not None:
            self._send(self._settings)

    def start(self, early_route: str = "") -> None:
        """Start the process, and send it its settings and the spans that it has, if any.

        If it has no settings yet, it meanwhile imports what the route of that name needs. Raises HeadspanError if it
        cannot be started.
        """
        empty_file(self._printed)
        with opening():
            ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), self._ring, *self.spools)
        main = f"main({theirs.fileno()}, {early_route!r})"
        script = f"import sys; sys.path[:] = {module_folders()!r}; {_MAIN}; {main}"
        try:
            with blocked(signal.SIGINT, signal.SIGTERM):
                self.process = subprocess.Popen(
                    [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", script],  # type: ignore[attr-defined]
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=self._printed,
                    stderr=self._printed,
                    env={**os.environ, **_ONE_THREAD},
                )
        except (OSError, ValueError, TypeError) as error:
            ours.close()
            raise HeadspanError(
                f"{sys.executable}: a decoding process cannot be started ({one_line(error)}); give fewer --workers, "
                "free memory, or raise the limit on open files (ulimit -n)"
            ) from error
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        if self._settings is not None:
            self._send(self._settings)
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
        size = os.fstat(self._printed).st_size
        text = os.pread(self._printed, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")
        return shortened(" ".join(text.split())[-500:])

    def kill(self) -> None:
        """Let the process end. Any thread may call this, also after `close`."""
        if self.process is not None:
            self.process.kill()

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
        for descriptor in (self._printed, *self.spools):
            close_file(descriptor)
