"""The folder for temporary files and caches of a run of pytest, which the run deletes at its end.

All processes of a run use it, those that tests kill included, so that they leave nothing behind elsewhere. A run that
was killed itself leaves its folder, which a run on a later day deletes.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "headspan-tests-"
_FOLDER = "HEADSPAN_TESTS_FOLDER"
_DAY = 24 * 3600


def use_run_folder() -> Path:
    """Let this process, and those that it starts, put temporary files into the run's folder; returns the folder."""
    place = Path(os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir())
    # pytest keeps the folders of the last three runs, for whoever looks into a failure.
    os.environ["PYTEST_DEBUG_TEMPROOT"] = str(place)
    if _FOLDER not in os.environ:
        _delete_old(place)
        os.environ[_FOLDER] = tempfile.mkdtemp(prefix=_PREFIX, dir=place)
        atexit.register(_delete, os.environ[_FOLDER], os.getpid())
    folder = Path(os.environ[_FOLDER])
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return folder


def _delete(folder: str, owner: int) -> None:
    # Forked processes have their parent's exit handlers.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


def _delete_old(place: Path) -> None:
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if folder.stat().st_mtime < time.time() - _DAY:
                shutil.rmtree(folder, ignore_errors=True)
