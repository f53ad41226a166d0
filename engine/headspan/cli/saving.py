"""Let a command print its result where the store cannot be written, and say that it was not saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from headspan.cli.terminal import tell
from headspan.errors import NotSavedError

T = TypeVar("T")


def saved_or_not(make: Callable[[], T]) -> tuple[T, NotSavedError | None]:
    """Return what `make` returns; in a store that may only be read, its unsaved result and the reason.

    Raises NotSavedError if the store cannot be written for another reason, such as a full disk.
    """
    try:
        return make(), None
    except NotSavedError as error:
        if not error.read_only:
            raise
        return error.result, error


def tell_unsaved(why: NotSavedError | None) -> None:
    """Say on standard error that a result was not saved, if it was not."""
    if why is not None:
        tell(f"headspan: the result was not saved: {why}")
