"""Called by a decoding process in a test: the route `exact` then ends the process at marked images."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from headspan.decode import exact, routes

# An image is marked by these bytes after its end, followed by what its decoder does.
MARK = b"ends its process: "
_fill = exact.fill_exact


def crash(encoded: bytes, *arguments: Any) -> None:
    """Decode as `exact` does, unless the image is marked."""
    how = encoded.partition(MARK)[2].decode()
    if how.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, how))
    if how.startswith("once "):
        # A file that the first process deletes; the second one finds none.
        path = how.removeprefix("once ")
        if os.path.exists(path):  # noqa: PTH110
            os.unlink(path)  # noqa: PTH108
            os.kill(os.getpid(), signal.SIGKILL)
    if how == "prints":
        print("x" * 100_000, file=sys.stderr)
    if how == "sleeps":
        signal.pause()
    _fill(encoded, *arguments)


def install() -> None:
    """Let marked images do what their mark says in this process."""
    routes.fill_exact = crash
