"""Logs of the processes that compute the units of a store: which units each has started and finished.

A log is locked as long as its process lives, and deleted when the process ends normally. So an unlocked log belongs to
a process that was killed, and tells which of its files to delete and which unit may have killed it. On a disk without
locks every process counts as alive. The guarantees of the store do not depend on these logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from headspan.errors import HeadspanError
from headspan.io.local import LocalStorage
from headspan.io.locks import LockedLog, alone, read_log
from headspan.io.storage import Storage, named
from headspan.store.schema import RECORDS

_FOLDER = f"{RECORDS}/writers"


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """A process whose log exists: its token, whether it is alive, and its units in flight."""

    token: str
    alive: bool
    in_flight: tuple[int, ...]


class WorkerLog:
    """This process's log; a context manager that deletes it unless an unexpected error ends the block."""

    def __init__(self, storage: Storage, token: str) -> None:
        self._folder = _root(storage) / _FOLDER
        self._log = LockedLog(self._folder / f"{token}.log")

    def __enter__(self) -> WorkerLog:
        self._log.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # The log stays after an unexpected error, such as a failing device, since the unit may have caused it. It did
        # not cause an interruption or a HeadspanError.
        self._log.close(delete=kind is None or issubclass(kind, HeadspanError | KeyboardInterrupt | GeneratorExit))

    def alone(self) -> AbstractContextManager[None]:
        """Let no other process choose a unit of this store in the block. On a disk without locks, any may."""
        return alone(self._folder)

    def took(self, unit: int) -> None:
        """Note that the unit is started, before anything else is done for it."""
        self._log.append(f"took {unit}")

    def finished(self, unit: int) -> None:
        """Note that the unit is committed, by this process or another one."""
        self._log.append(f"finished {unit}")


def other_workers(storage: Storage, token: str = "") -> Iterator[OtherWorker]:
    """List all processes whose log exists, except the one of `token`."""
    for key in named(storage, _FOLDER, r"[0-9a-f]{8}\.log"):
        path = _root(storage) / key
        if path.stem == token:
            continue
        # None if the log was deleted meanwhile or this user may not open it. Nothing is then known of its process.
        if (found := read_log(path)) is None:
            continue
        alive, lines = found
        in_flight: Counter[int] = Counter()
        for line in lines:
            word, _, unit = line.partition(" ")
            if unit.isdigit():
                in_flight[int(unit)] += 1 if word == "took" else -1
        yield OtherWorker(path.stem, alive, tuple(sorted(unit for unit, count in in_flight.items() if count > 0)))


def forget(storage: Storage, token: str) -> None:
    """Delete the log of a process that was killed."""
    storage.delete(f"{_FOLDER}/{token}.log")


def _root(storage: Storage) -> Path:
    assert isinstance(storage, LocalStorage), "only local folders have locks"
    return storage.root
