"""Start a process that computes units, exchange messages with it, and end it.

The process is a new Python, never a fork, and does not import the user's script; so a script without a `__main__` guard
works. It ignores Ctrl-C, which its parent passes on as SIGTERM.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TypeAlias

from headspan.errors import shortened
from headspan.io.interpreters import blocked, module_folders_line, signal_name
from headspan.redact import redact
from headspan.run.executors.messages import Message, Order, line_of, message_of

# The first line that the process reads says where its parent finds modules. Nothing after it may be read with it.
_BEGIN = """
import json, sys
sys.path[:] = json.loads(open(0, "rb", buffering=0, closefd=False).readline())
from headspan.run.executors.device_main import main
sys.exit(main(int(sys.argv[1])))
"""
# How long a process may take to finish its batch and delete its staged files.
GRACE_SECONDS = 30.0
_LAST_LINES = 20


# Messages of several processes, each with its sender; None at the end of a process.
Inbox: TypeAlias = "queue.SimpleQueue[tuple[DeviceProcess, Message | None]]"


class DeviceProcess:
    """A process for one device. It begins to import libraries at once, and to compute when it receives an order."""

    def __init__(self, device: str, inbox: Inbox, folder: str | None = None) -> None:
        """Start the process, in `folder` if it is given. Its messages are put into `inbox`, and None at its end."""
        self.device = device
        self._inbox = inbox
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._keep_last_lines)]
        with ExitStack() as on_failure:
            # Messages have a pipe of their own: anything may print to standard output, even before the first import.
            receiving, sending = os.pipe()
            self._messages = on_failure.enter_context(os.fdopen(receiving, "rb"))
            try:
                # Ctrl-C cannot end the process before it ignores it, nor arrive before a failure ends the process.
                with blocked(signal.SIGINT):
                    # -P: modules of the current folder must not replace those of the first lines.
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-c", _BEGIN, str(sending)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        pass_fds=[sending],
                        cwd=folder,
                    )
                    on_failure.callback(self._kill)
            finally:
                os.close(sending)
            for thread in self._threads:
                thread.start()
            self._send(module_folders_line())
            on_failure.pop_all()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def order(self, order: Order) -> None:
        """Let the process compute."""
        self._send(line_of(order))

    def terminate(self) -> None:
        """Ask the process to delete its staged files and to end."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def wait(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Wait for the end of a process that was asked to end; one that does not end is killed."""
        try:
            self._process.wait(grace_seconds)
        finally:
            # After an interruption too.
            self._kill()

    def end_in_words(self) -> str:
        """How a process that sends no more messages was ended, and what it printed last: `was ended by SIGKILL`.

        It is killed if it does not end in time.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_SECONDS)
        self._process.kill()
        code = self._process.wait()
        how = f"was ended by {signal_name(code)}" if code < 0 else f"ended with exit code {code}"
        self._threads[1].join(timeout=1.0)
        # The last lines say most, so they come first if there are too many.
        printed = " ".join(" ".join(reversed(self._last_lines)).split())
        return how + (f" (it printed, last line first: {shortened(redact(printed), 400)})" if printed else "")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        for thread in self._threads:
            # A process that it started may live longer, and hold the pipe.
            if thread.is_alive():
                thread.join(timeout=1.0)

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        # If the process is gone, None arrives in the inbox.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        try:
            with self._messages as lines:
                for line in lines:
                    # A killed process may leave half a line.
                    if line.endswith(b"\n"):
                        self._inbox.put((self, message_of(line)))
        finally:
            self._inbox.put((self, None))

    def _keep_last_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._last_lines.append(line.decode(errors="backslashreplace"))


def end(processes: Sequence[DeviceProcess]) -> None:
    """End all of `processes`, together; one that does not delete its staged files in time is killed."""
    for process in processes:
        process.terminate()
    left = list(processes)
    try:
        while left:
            with suppress(subprocess.TimeoutExpired):
                left[0].wait()
            left.pop(0)
    finally:
        # A second Ctrl-C: none may outlive this process.
        for process in left:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.0)
