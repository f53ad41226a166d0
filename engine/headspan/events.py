"""Events: the engine emits them, listeners turn them into progress bars or lines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The stage of an event that only carries a note.
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
    """A listener that does nothing."""
