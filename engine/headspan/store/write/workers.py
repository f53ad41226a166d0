"""Who writes a store: a log for each writer, of the units that it took in hand and finished.

A log is locked as long as its writer lives, and deleted when that ends in good order. So a log that nobody locks
tells of a writer that was killed, and of what it had in hand: what must be tidied, and which unit may have done it.
Where the disk knows no locks, every writer counts as alive. No promise of the store rests on these logs.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headspan.errors import HeadspanError
from headspan.io.local import make_folder, named, refusals
from headspan.store.schema import RECORDS


@dataclass(frozen=True, slots=True)
class OtherWorker:
    """A writer that has not ended in good order: its token, whether it lives, the units in its hands."""

    token: str
    alive: bool
    in_flight: tuple[int, ...]


class WorkerLog:
    """This writer's log; a context manager that deletes it, unless an error of nobody's making ends the run."""

    def __init__(self, root: Path, token: str) -> None:
        self._path = _folder(root) / f"{token}.log"
        self._descriptor = -1

    def __enter__(self) -> WorkerLog:
        with refusals(self._path):
            while self._descriptor < 0:
                make_folder(self._path.parent)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
                _lock(descriptor)
                # Before it was locked, another may have taken it for a dead writer's and tidied it away.
                if self._path.exists() and self._path.stat().st_ino == os.fstat(descriptor).st_ino:
                    self._descriptor = descriptor
                else:
                    os.close(descriptor)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # A bug, or a device that failed, may be the unit's doing; an interruption and the world's errors are not.
        if kind is None or issubclass(kind, HeadspanError | KeyboardInterrupt | GeneratorExit):
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def took(self, unit: int) -> None:
        """Note, before anything is done for it, that the unit is in hand."""
        self._note("took", unit)

    def finished(self, unit: int) -> None:
        """Note that the unit is committed, by whom ever."""
        self._note("finished", unit)

    def _note(self, word: str, unit: int) -> None:
        with refusals(self._path):
            os.write(self._descriptor, f"{word} {unit}\n".encode())
            os.fsync(self._descriptor)


def other_workers(root: Path, token: str = "") -> Iterator[OtherWorker]:
    """All writers that left a log, but for the one of `token`."""
    for path in named(_folder(root), r"[0-9a-f]{8}\.log"):
        if path.stem == token:
            continue
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError:
            # Deleted in between; or not ours to open, and then nothing is known of it.
            continue
        try:
            alive = not _lock(descriptor, wait=False)
            in_flight: Counter[int] = Counter()
            for line in path.read_text().splitlines():
                word, _, unit = line.partition(" ")
                if unit.isdigit():
                    in_flight[int(unit)] += 1 if word == "took" else -1
        except FileNotFoundError:
            continue
        finally:
            os.close(descriptor)
        yield OtherWorker(path.stem, alive, tuple(sorted(unit for unit, count in in_flight.items() if count > 0)))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is in here with the same folder, where its disk knows locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def forget(root: Path, token: str) -> None:
    """Delete the log of a writer that was killed."""
    (_folder(root) / f"{token}.log").unlink(missing_ok=True)


def _folder(root: Path) -> Path:
    return root / RECORDS / "writers"


def _lock(descriptor: int, wait: bool = True) -> bool:
    """Whether the lock was had; also False where another has it, or the disk knows no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
