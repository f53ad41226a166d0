"""Messages between the process that plans a run and the processes that compute it, as lines of JSON.

The planning process sends one `Order`. A computing process answers with any number of `Event` and `Committed`, and ends
with `Finished` or `Failed`. Whoever watches a process on another computer adds how it ended (`Ended`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from headspan import errors
from headspan.config import PrecomputeSettings
from headspan.errors import HeadspanError
from headspan.events import Progress
from headspan.shards.samples import BadImage
from headspan.store.commit_records import UnitRecord


@dataclass(frozen=True, slots=True)
class Order:
    """Compute units of a planned store with these settings."""

    settings: dict[str, Any]
    # Of matrix products on a CPU, whose last digits may depend on them.
    torch_threads: int
    # The planning process's token, by which a process on another computer recognises the store; None on the same one.
    planner: str | None = None

    def for_device(self) -> PrecomputeSettings:
        """The settings of the process that receives the order."""
        return PrecomputeSettings.from_dict(self.settings)


@dataclass(frozen=True, slots=True)
class Event:
    """A computing process reports its progress, or a note."""

    stage: str
    done: int
    total: int | None
    note: str

    @property
    def progress(self) -> Progress:
        """The event as listeners know it."""
        return Progress(self.stage, self.done, self.total, self.note)


@dataclass(frozen=True, slots=True)
class Committed:
    """A computing process has committed a unit."""

    rows: int
    # The fields of each bad image.
    bad: list[dict[str, Any]]

    @classmethod
    def of(cls, record: UnitRecord) -> Committed:
        """What the planning process needs of a record."""
        return cls(record.rows, [asdict(image) for image in record.bad])

    @property
    def bad_images(self) -> list[BadImage]:
        """The images that could not be used."""
        return [BadImage(**image) for image in self.bad]


@dataclass(frozen=True, slots=True)
class Finished:
    """A computing process has nothing left to do; the seconds of its stages."""

    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Failed:
    """A computing process has met an error that a user can correct: its class and its sentence."""

    kind: str
    sentence: str

    @property
    def error(self) -> HeadspanError:
        """The error, to be raised in the planning process."""
        kind = getattr(errors, self.kind, HeadspanError)
        found: HeadspanError = kind(self.sentence)
        return found


@dataclass(frozen=True, slots=True)
class Ended:
    """A computing process sends no more messages; how it ended, and what it printed last, in words."""

    how: str


Message = Order | Event | Committed | Finished | Failed | Ended
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (Order, Event, Committed, Finished, Failed, Ended)}


def line_of(message: Message) -> bytes:
    """The line that carries a message."""
    return json.dumps({type(message).__name__: asdict(message)}).encode() + b"\n"


def message_of(line: bytes) -> Message:
    """The message that a line carries."""
    [(name, values)] = json.loads(line).items()
    found: Message = _KINDS[name](**values)
    return found
