"""Do not wait until files are on a disk: no test can see it, and a toy store syncs its files 170 times."""

from __future__ import annotations

import os
from typing import Any


def do_not_sync() -> None:
    """Let `os.fsync` of this process only refuse what is no open file."""
    os.fsync = _refuse_closed


def _refuse_closed(descriptor: Any) -> None:
    os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno())
