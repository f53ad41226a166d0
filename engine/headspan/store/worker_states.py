"""Read who works on a store: what each worker says of itself, its units in flight, and whether it is alive.

A worker writes one small object, its state, and `store.write.workers` describes when. In a local folder the state is in
a log that the process locks, and it is alive as long as the lock is held, which the system releases at its end. On a
disk without locks every process counts as alive. In an object store, which has no locks, the state is a lease: a worker
that has not written it for DEAD_SECONDS by the clock of the storage counts as dead. So the clocks of computers may
disagree.

A unit that a worker has started has a reservation, an object with the worker's token that only one of several workers
can write, and so has the end of the run. One listing of the folder shows which workers a bucket has, which of them are
alive, and since when each unit is reserved. The guarantees of the store depend on none of this: commit records alone
decide.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from headspan.io.local import LocalStorage
from headspan.io.locks import last_line, read_log
from headspan.io.storage import Storage
from headspan.store.schema import RECORDS

WORKERS = f"{RECORDS}/writers"
# Without locks: how often a worker shows that it is alive, and the silence after which it counts as dead.
BEAT_SECONDS, DEAD_SECONDS = 20.0, 180.0
# Finished units whose times a worker's state holds, for its rate.
RECENT_UNITS = 8
# States that are read from an object store at the same time.
_AT_ONCE = 16
_RESERVATION = re.compile(rf"{WORKERS}/unit-(\d{{8,}})\.(\d+)")
_AGREEMENT = re.compile(rf"{WORKERS}/run\.(\d+)")
# The name under which the end of the run is reserved: one worker adds up the moments of all units.
END = "end"
_OF_END = re.compile(rf"{WORKERS}/{END}\.\d+")


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

    def dump(self) -> str:
        """The state as JSON, in one line."""
        return json.dumps(asdict(self))

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

    @property
    def ended_here(self) -> bool:
        """Whether it was a process of this computer that has ended, as far as its state and the system tell.

        A computer of the same name may have that process. So this tells what may be done twice, and not who is dead.
        """
        if self.state is None or self.state.host != platform.node():
            return False
        try:
            os.kill(self.state.process, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            # It belongs to another user.
            pass
        return False


@dataclass(frozen=True, slots=True)
class Seen:
    """What one listing shows of all workers. Times are seconds by the clock of the storage."""

    now: float
    # When each worker last wrote its state, by its token.
    written: dict[str, float]
    # The last turn of each reserved unit, and when it was reserved.
    begun: dict[int, tuple[int, float]]
    # How many runs, each of one version and weights, have begun on this store.
    runs: int


def state_key(storage: Storage, token: str) -> str:
    """The key of a worker's state: of its lease, or of its locked log in a local folder."""
    return f"{WORKERS}/{token}.{'log' if has_locks(storage) else 'json'}"


def unit_name(unit: int) -> str:
    """The name under which a unit is reserved."""
    return f"unit-{unit:08d}"


def reservation_key(name: str, turn: int) -> str:
    """The key of the reservation of a unit or of END. The next turn is for who takes it over from a dead worker."""
    return f"{WORKERS}/{name}.{turn}"


def run_key(number: int) -> str:
    """The key of the note on the version and weights of a run; the last number is the run that is under way."""
    return f"{WORKERS}/run.{number}"


def look(storage: Storage) -> Seen:
    """List the folder of workers, once."""
    state = re.compile(rf"{WORKERS}/([0-9a-f]{{8}})\.{'log' if has_locks(storage) else 'json'}")
    written: dict[str, float] = {}
    begun: dict[int, tuple[int, float]] = {}
    runs = 0
    for key, when in storage.times(WORKERS).items():
        if match := state.fullmatch(key):
            written[match[1]] = when
        elif match := _RESERVATION.fullmatch(key):
            unit = int(match[1])
            begun[unit] = max(begun.get(unit, (-1, 0.0)), (int(match[2]), when))
        elif match := _AGREEMENT.fullmatch(key):
            runs = max(runs, int(match[1]) + 1)
    return Seen(storage.now(), written, begun, runs)


def other_workers(
    storage: Storage, token: str = "", seen: Seen | None = None, *, states: bool = True
) -> Iterator[OtherWorker]:
    """Yield all workers that have not ended normally, except the one of `token`, by what was `seen`.

    Without `states`, the living workers of a bucket have no state and no units in flight: only the dead are read.
    """
    seen = look(storage) if seen is None else seen
    tokens = sorted(seen.written.keys() - {token})
    if isinstance(storage, LocalStorage):
        found = [worker_of(storage, each, seen.now) for each in tokens]
    else:
        silent = {each: max(0.0, seen.now - seen.written[each]) for each in tokens}
        read = [each for each in tokens if states or silent[each] >= DEAD_SECONDS]
        # Each takes the time of two answers.
        with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(read)))) as threads:
            states_of = dict(zip(read, threads.map(lambda each: worker_of(storage, each, seen.now), read), strict=True))
        found = [
            states_of.get(each) if each in states_of else OtherWorker(each, True, (), silent[each]) for each in tokens
        ]
    yield from (worker for worker in found if worker is not None)


def worker_of(storage: Storage, token: str, now: float | None = None) -> OtherWorker | None:
    """One worker by its token; None if it has ended normally, or if nothing can be known of it."""
    key = state_key(storage, token)
    written = storage.modified(key)
    if written is None:
        return None
    silent = max(0.0, (storage.now() if now is None else now) - written)
    if not isinstance(storage, LocalStorage):
        state = _state(storage.get, key)
        return OtherWorker(token, silent < DEAD_SECONDS, tuple(sorted(state.units if state else ())), silent, state)
    # None if the log was deleted meanwhile or this user may not open it. Nothing is then known of its process.
    if (found := read_log(storage.root / key)) is None:
        return None
    alive, lines = found
    state = None if (line := last_line(lines)) is None else _state(str.encode, line)
    return OtherWorker(token, alive, tuple(sorted(state.units if state else _logged(lines))), silent, state)


def delete_reservations(storage: Storage) -> None:
    """Delete all reservations, and what is noted of the run, once every unit is committed."""
    for key in list(storage.list(WORKERS)):
        if _RESERVATION.fullmatch(key) or _AGREEMENT.fullmatch(key) or _OF_END.fullmatch(key):
            storage.delete(key)


def has_locks(storage: Storage) -> bool:
    """Whether a worker that counts as dead is certainly dead."""
    return isinstance(storage, LocalStorage)


def _state(read: Callable[[str], bytes], place: str) -> WorkerState | None:
    try:
        return WorkerState.load(read(place))
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
