"""Start a process of the server, which is asked over a pipe and ends with the server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection


def started(module: str, environment: Mapping[str, str] | None = None) -> tuple[Connection, subprocess.Popen[bytes]]:
    """This end of a pipe, and a process that runs `module` with the number of the other end as its argument.

    The process has a session of its own, so that Ctrl-C reaches the server alone; it should end when the pipe does.
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
