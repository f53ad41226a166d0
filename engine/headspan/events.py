"""Events: the engine emits them, listeners turn them into progress bars or lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The stage of an event that is a remark, its `note`, and no progress.
NOTE = "note"


@dataclass(frozen=True, slots=True)
class Progress:
    """An event: `done` of `total` things of one `stage`; `total` is None while it is unknown."""

    stage: str
    done: int
    total: int | None
    note: str = ""


Listener = Callable[[Progress], None]


def ignore(event: Progress) -> None:
    """The listener that listens to nothing."""
