"""Let spawned processes start without importing the benchmark that spawns them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def light_main() -> Iterator[None]:
    """Within it, the main module is empty.

    A spawned process imports its parent's main module first. A benchmark's imports torch, which takes seconds and
    hundreds of megabytes in each process; the main module of the command `headspan` does not.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
