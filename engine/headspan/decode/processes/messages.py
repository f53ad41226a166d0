"""What the launching process and its decoding processes tell one another: settings, spans to decode, results.

Messages are pickled. Both ends are processes of one run, connected by a pair of sockets that nobody else has.
Those that are sent for every span are named tuples, which are pickled fast.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from headspan.config import Preprocess
from headspan.shards.images import ImagePlace

# A worker's note in the ring's memory: four numbers of 64 bits. The slots begin at a page, as pinned memory must.
NOTE_BYTES = 32
_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """Everything that a decoding process is told once, when it starts."""

    # Its number, from 0, and how many there are.
    worker: int
    workers: int
    route: str
    preprocess: Preprocess
    # The slots of the ring, and images in a slot.
    slots: int
    slot_images: int
    # Encoded bytes that this process may hold, and rasters that all of them may hold together.
    encoded_bytes: int
    raster_bytes: int
    # The descriptor of the memory file of notes and slots.
    ring: int = -1
    # Descriptors of the memory files into which the launching process copies what only it can read.
    spools: tuple[int, ...] = ()

    @property
    def notes_bytes(self) -> int:
        """Memory of all workers' notes, in whole pages."""
        return -(-self.workers * NOTE_BYTES // _PAGE_BYTES) * _PAGE_BYTES

    @property
    def ring_bytes(self) -> int:
        """Memory of the notes and the slots."""
        return self.notes_bytes + self.slots * self.slot_images * self.preprocess.pixel_bytes


class Run(NamedTuple):
    """Neighbouring images of one shard: how many, and where their bytes are; None means in the spool."""

    images: int
    place: ImagePlace | None


def cut(runs: tuple[Run, ...], start: int, stop: int) -> tuple[Run, ...]:
    """The runs of the images `start` to `stop`."""
    found = []
    begin = 0
    for run in runs:
        images = min(stop, begin + run.images) - max(start, begin)
        if images > 0:
            found.append(Run(images, run.place))
        begin += run.images
    return tuple(found)


class SpanRequest(NamedTuple):
    """Images to decode into a slot of the ring."""

    number: int
    slot: int
    runs: tuple[Run, ...]
    # Of the encoded images, in their shard or in the spool. Sizes may be estimates.
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    # Which of the worker's spools holds the bytes of runs without a place; -1 if there is no such run.
    spool: int = -1
    # Images that are known to be bad, by their places in the span.
    reasons: dict[int, str] = {}  # noqa: RUF012
    # The images' members, if any of the places needs them.
    members: tuple[str, ...] = ()

    @property
    def is_spooled(self) -> bool:
        """Whether any of its bytes are in a spool."""
        return self.spool >= 0


class SpanResult(NamedTuple):
    """A decoded span: its good images are at the beginning of its slot, in order."""

    number: int
    # Places in the span, and reasons.
    bad: tuple[tuple[int, str], ...]
    encoded_bytes: int
    crc32c: int
    reading_seconds: float
    decoding_seconds: float


class SpanFailure(NamedTuple):
    """A span that could not be read, or whose decoder cannot be loaded: the error's class and its text."""

    number: int
    kind: str
    text: str


def send(connection: Connection, message: Any) -> None:
    """Send a message. Raises OSError if the other process has ended."""
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """The next message. Raises EOFError or OSError if the other process has ended."""
    return pickle.loads(connection.recv_bytes())
