"""The entry of `headspan` and `python -m headspan`: handles Ctrl-C while the command line is still loading."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from headspan.cli.terminal import tell

_INTERRUPTED = 130


def _end(number: int, frame: FrameType | None) -> None:
    """Exit immediately: nothing has begun, and an exception in an import could be caught as an ImportError."""
    tell("headspan: interrupted")
    os._exit(_INTERRUPTED)


def main() -> int:
    """Load the command line and run it; returns the exit code."""
    # A signal that the shell ignores for a background process stays ignored.
    may_end = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if may_end:
        signal.signal(signal.SIGINT, _end)
    from headspan.cli.main import main as run

    try:
        if may_end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        # Before the command began, or after it ended.
        tell("headspan: interrupted")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
