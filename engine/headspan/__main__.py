"""Start the command line. Ctrl-C ends it with one sentence and exit code 130, even while modules load."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from headspan.cli.terminal import tell

_INTERRUPTED = 130


def _end(number: int, frame: FrameType | None) -> None:
    """End at once: nothing has begun, and an exception might be mistaken for a failed import."""
    tell("headspan: interrupted")
    os._exit(_INTERRUPTED)


def main() -> int:
    """Load and run the command line. Returns the exit code."""
    # Signals that are ignored, as in a shell's background jobs, stay ignored.
    may_end = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if may_end:
        signal.signal(signal.SIGINT, _end)
    from headspan.cli.main import main as run

    try:
        if may_end:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run()
    except KeyboardInterrupt:
        # It came before the command began, or after it ended.
        tell("headspan: interrupted")
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
