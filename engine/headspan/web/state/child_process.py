"""Start a process that answers the server's questions over a pipe."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection


def started(module: str, environment: Mapping[str, str] | None = None) -> tuple[Connection, subprocess.Popen[bytes]]:
    """Start a process that runs `module`, and return the server's end of a pipe to it, and the process.

    The argument of the module is the descriptor of the other end. The process has a session of its own, so Ctrl-C
    interrupts only the server; the module should end when the server closes its end of the pipe.
    """
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    return ours, process
