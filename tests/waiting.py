"""Wait in a test for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until `true` holds. A machine that is busy with other work may need many seconds for very little."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"not true within {seconds:g} seconds"
        time.sleep(0.001)
