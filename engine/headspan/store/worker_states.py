"""Read who works on a store: what each worker says of itself, its units in flight, and whether it is alive.

A worker writes one small object, its state, and `store.write.workers` describes when. In a local folder a worker is
alive as long as its process holds a lock, which the system releases at its end. In an object store, which has no locks,
the state is a lease: a worker that has not written it for DEAD_SECONDS by the clock of the storage counts as dead. So
the clocks of computers may disagree. On a disk without locks every process counts as alive.

A unit that a worker has started has a reservation, an object with the worker's token that only one of several workers
can write. The guarantees of the store depend on none of this: commit records alone decide.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from headspan.io.local import LocalStorage
from headspan.io.locks import read_log
from headspan.io.storage import Storage, named
from headspan.store.schema import RECORDS

WORKERS = f"{RECORDS}/writers"
# Without locks: how often a worker shows that it is alive, and the silence after which it counts as dead.
BEAT_SECONDS, DEAD_SECONDS = 20.0, 180.0
# Finished units whose times a worker's state holds, for its rate.
RECENT_UNITS = 8
_STATE, _LOCK = r"[0-9a-f]{8}\.json", r"[0-9a-f]{8}\.log"
_RESERVATION = re.compile(rf"{WORKERS}/unit-(\d{{8,}})\.(\d+)")


@dataclass(slots=True)
class WorkerState:
    """What a worker says of itself. All times are seconds by the clock of the storage."""

    host: str = ""
    process: int = 0
    device: str = ""
    version: str = ""
    weights_sha256: str = ""
    began: float = 0.0
    # Its units in flight, with the time when each was started.
    units: dict[int, float] = field(default_factory=dict)
    # Units and rows that it has finished, and the time and rows of the last few.
    finished: int = 0
    rows: int = 0
    recent: list[tuple[float, int]] = field(default_factory=list)

    def dump(self) -> bytes:
        """The state as JSON."""
        return (json.dumps(asdict(self)) + "\n").encode()

    @classmethod
    def load(cls, data: bytes) -> WorkerState:
        """The state that `dump` wrote; keys of later versions are ignored. Raises ValueError if it is not one."""
        values: dict[str, Any] = json.loads(data)
        if not isinstance(values, dict):
            raise ValueError("not a state")
        known = {name: value for name, value in values.items() if name in cls.__dataclass_fields__}
        units = {int(unit): float(since) for unit, since in known.pop("units", {}).items()}
        recent = [(float(when), int(rows)) for when, rows in known.pop("recent", [])]
        return cls(**known, units=units, recent=recent)

    @property
    def name(self) -> str:
        """The worker in words, such as `process 4711 on node7 (cuda:0)`."""
        device = f" ({self.device})" if self.device else ""
        return f"process {self.process} on {self.host or 'an unknown host'}{device}"


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """A process that has begun to work and did not end normally: its token, whether it is alive, its units in flight.

    `silent_seconds` is the time since it last wrote its state. `state` is None if there is none, as of a worker of an
    earlier version.
    """

    token: str
    alive: bool
    in_flight: tuple[int, ...]
    silent_seconds: float = 0.0
    state: WorkerState | None = None


def state_key(token: str) -> str:
    """The key of a worker's state."""
    return f"{WORKERS}/{token}.json"


def lock_key(token: str) -> str:
    """The key of the file that a worker locks, in a local folder. Workers of earlier versions log their units in it."""
    return f"{WORKERS}/{token}.log"


def reservation_key(unit: int, turn: int) -> str:
    """The key of a unit's reservation. The next turn is for who takes it over from a dead worker."""
    return f"{WORKERS}/unit-{unit:08d}.{turn}"


def other_workers(storage: Storage, token: str = "") -> Iterator[OtherWorker]:
    """List all workers that have not ended normally, except the one of `token`: one listing, and a read for each."""
    keys = named(storage, WORKERS, rf"({_STATE}|{_LOCK})" if isinstance(storage, LocalStorage) else _STATE)
    tokens = sorted({key.rpartition("/")[2].partition(".")[0] for key in keys} - {token})
    now = storage.now() if tokens else 0.0
    for each in tokens:
        if (found := worker_of(storage, each, now)) is not None:
            yield found


def worker_of(storage: Storage, token: str, now: float | None = None) -> OtherWorker | None:
    """One worker by its token; None if it has ended normally, or if nothing can be known of it."""
    written = storage.modified(state_key(token))
    silent = 0.0 if written is None else max(0.0, (storage.now() if now is None else now) - written)
    lines: list[str] = []
    if isinstance(storage, LocalStorage):
        # None if it was deleted meanwhile or this user may not open it.
        found = read_log(storage.root / lock_key(token))
        if found is None:
            # A state without a lock is left by a process that was killed amid its end.
            if written is None or storage.size(lock_key(token)) is not None:
                return None
            found = (False, [])
        alive, lines = found
    elif written is None:
        return None
    else:
        alive = silent < DEAD_SECONDS
    state = _state(storage, token)
    units = sorted({*(state.units if state else ()), *_logged(lines)})
    return OtherWorker(token, alive, tuple(units), silent, state)


def reservations(storage: Storage) -> list[tuple[int, int]]:
    """The reserved units with their turns, in order; one listing."""
    found = (_RESERVATION.fullmatch(key) for key in storage.list(WORKERS))
    return sorted((int(match[1]), int(match[2])) for match in found if match)


def _state(storage: Storage, token: str) -> WorkerState | None:
    try:
        return WorkerState.load(storage.get(state_key(token)))
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def _logged(lines: list[str]) -> Iterator[int]:
    """The units in flight in the log of a worker of an earlier version."""
    in_flight: Counter[int] = Counter()
    for line in lines:
        word, _, unit = line.partition(" ")
        if unit.isdigit():
            in_flight[int(unit)] += 1 if word == "took" else -1
    return (unit for unit, count in in_flight.items() if count > 0)
