"""Parts of a plan that the planners of one store share: each part is read by one of them, and kept for all.

A part is the samples of some neighbouring shards. A planner reserves it as a worker reserves a unit, and puts its table
where all planners see it: in a folder beside the store, or among the staged files of a bucket. When all parts are
there, one planner writes the plan. What a killed planner had reserved is read by another. Parts are deleted with the
last living planner, so a plan whose planners were all killed goes on from its parts.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa

from headspan.io.local import LocalStorage
from headspan.io.locations import Location
from headspan.io.locks import alone
from headspan.io.object_store import STAGED
from headspan.io.storage import Storage
from headspan.io.stores import storage_to_write
from headspan.member_names import MemberNames
from headspan.shards.samples import BadImage, Shard
from headspan.store.tables import SAMPLES, ReadShard
from headspan.store.worker_states import has_locks, look, other_workers
from headspan.store.write.workers import WorkerLog

_PARTS = "parts"
# Without locks, a part is looked at again after so many seconds, in case its planner is dead; some at a time.
_LATE_SECONDS, _LOOKS = 60.0, 4


class PlanParts:
    """The parts of one plan; a context manager, in which the other planners know that this one lives."""

    def __init__(self, path: Location, names: Iterable[str], members: MemberNames, count: int) -> None:
        """`names` are those of the shards, which are read by `members`, in `count` parts."""
        self._path, self._count = path, count
        told = json.dumps([version("headspan"), asdict(members), count, *names])
        name = hashlib.sha256(told.encode()).hexdigest()[:8]
        self._storage: Storage = (
            LocalStorage(path.with_name(f"{_prefix(path)}{name}"))
            if isinstance(path, Path)
            else storage_to_write(path / f"{STAGED}/{name}")
        )
        self._log = WorkerLog(self._storage, self._storage.token)
        # The parts that this planner has put.
        self.own: set[int] = set()

    def __enter__(self) -> PlanParts:
        if isinstance(self._path, Path):
            # Another planner would delete a folder whose log is not locked yet.
            with alone(self._path.parent):
                self._log.__enter__()
        else:
            self._log.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._log.__exit__(None)
        # A folder beside the store is deleted with the folder of the plan.
        if not isinstance(self._path, Path) and not _is_used(self._storage):
            self._storage.delete_folder("")

    def missing(self) -> list[int]:
        """The parts that nobody has put yet."""
        there = set(self._storage.list(_PARTS))
        return [number for number in range(self._count) if _key(number) not in there]

    def free(self, missing: Sequence[int]) -> list[int]:
        """Those of `missing` that nobody has reserved; if there are none, some whose planner may be dead."""
        seen = look(self._storage)
        left = [number for number in missing if number not in self._log.in_flight]
        # From a drawn place on, so that planners that begin together do not meet.
        first = random.randrange(len(left)) if left and len(seen.written) > 1 else 0
        left = left[first:] + left[:first]
        if free := [number for number in left if number not in seen.begun]:
            return free
        limit = seen.now - (0.0 if has_locks(self._storage) else _LATE_SECONDS)
        return [number for number in left if seen.begun[number][1] <= limit][:_LOOKS]

    def take(self, number: int) -> bool:
        """Reserve a part, to read its shards. Returns False if a living planner has it, or if it is there."""
        if not self._log.took(number):
            return False
        if self._storage.size(_key(number)) is None:
            return True
        self._log.drop(number)
        return False

    def put(self, number: int, found: Sequence[ReadShard]) -> None:
        """Put a part that was read."""
        self._storage.put(_key(number), [_packed(found)])
        self._log.finished(number, sum(shard.images for shard, *_ in found))
        self.own.add(number)

    def read(self, number: int) -> list[ReadShard] | None:
        """Return a part; None if it is not there any more, or damaged."""
        try:
            return _unpacked(self._storage.get(_key(number)))
        except (OSError, ValueError, TypeError, KeyError, pa.ArrowException):
            return None

    def take_end(self) -> bool:
        """Reserve the writing of the plan. Returns False if another living planner does it."""
        return self._log.take_end() is None


def remove_unused_parts(path: Path) -> None:
    """Delete the parts of all plans of the store at `path` that no living planner uses."""
    with alone(path.parent):
        for folder in list(path.parent.iterdir()):
            if folder.name.startswith(_prefix(path)) and not _is_used(LocalStorage(folder)):
                LocalStorage(path.parent).delete_folder(folder.name)


def _is_used(storage: Storage) -> bool:
    return any(planner.alive for planner in other_workers(storage, states=False))


def _prefix(path: Path) -> str:
    return f".{path.name}.parts-"


def _key(number: int) -> str:
    return f"{_PARTS}/{number:08d}.arrow"


def _packed(found: Sequence[ReadShard]) -> bytes:
    """Return the tables of neighbouring shards as one, with the rest of what was read in its metadata."""
    about = [[asdict(shard), [asdict(note) for note in notes], dict(fields)] for shard, _, notes, fields in found]
    schema = SAMPLES.with_metadata({"headspan": json.dumps(about)})
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        for _, table, _, _ in found:
            stream.write_table(table.replace_schema_metadata(schema.metadata))
    return out.getvalue().to_pybytes()


def _unpacked(data: bytes) -> list[ReadShard]:
    with pa.ipc.open_stream(data) as stream:
        whole, about = stream.read_all(), json.loads(stream.schema.metadata[b"headspan"])
    found: list[ReadShard] = []
    first = 0
    for shard, notes, fields in about:
        read = Shard(**shard)
        table = whole.slice(first, read.images).replace_schema_metadata(None)
        found.append((read, table, [BadImage(**note) for note in notes], Counter(fields)))
        first += read.images
    if first != len(whole):
        raise ValueError("another number of rows")
    return found
