"""Read the shards for a new store's plan on a thread, while the model is loaded.

Only local shards are read ahead. Reading a remote shard or a command cannot be stopped quickly if the model cannot be
loaded, so their plan is read afterwards, on the caller's thread. Progress is reported on the caller's thread, and only
once it waits for the plan, so that the order of events does not depend on which of the two takes longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from headspan.config import MemberNames
from headspan.errors import StoreError
from headspan.events import Listener, Progress
from headspan.io.retry import is_remote
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.store.write.create import NewStore


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan whose samples and notes are written to the folder of the new store."""

    shards: list[Shard]
    notes: list[BadImage]
    images: int
    unit_images: int


class PlanInProgress:
    """The plan of a new store in the folder `staged`, which is being read or will be."""

    def __init__(self, staged: NewStore, urls: Mapping[str, str], unit_images: int, names: MemberNames) -> None:
        self.staged = staged
        self._urls = urls
        self._unit_images = unit_images
        self._names = names
        self._found: Future[Plan] = Future()
        self._events: SimpleQueue[Progress | None] = SimpleQueue()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        if not any(map(is_remote, urls.values())):
            self._thread = threading.Thread(target=self._run, name="headspan-plan")
            self._thread.start()

    def result(self, on_progress: Listener) -> Plan:
        """Wait for the plan, and report the progress since it began. Raises what reading the shards raises."""
        if self._thread is None:
            return self._read(on_progress)
        while (event := self._events.get()) is not None:
            on_progress(event)
        return self._found.result()

    def stop(self) -> None:
        """End the thread, if it has not finished."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._found.set_result(self._read(self._events.put))
        except BaseException as error:
            # It is raised where the plan is awaited.
            self._found.set_exception(error)
        finally:
            self._events.put(None)

    def _read(self, on_progress: Listener) -> Plan:
        shards: list[Shard] = []
        notes: list[BadImage] = []
        samples = samples_of(self._urls, shards, notes, on_progress, self._names, self._stopped.is_set)
        images = self.staged.plan(samples, self._unit_images, notes)
        return Plan(shards, notes, images, self._unit_images)


@contextmanager
def begun_plan(
    path: Path, urls: Mapping[str, str], unit_images: int, names: MemberNames
) -> Iterator[PlanInProgress | None]:
    """Begin to plan a store at `path` over the shards `urls` (by name); None if there is a store already.

    The folder of the new store is deleted at the end, unless it has become the store. Raises StoreError if the path
    holds something else.
    """
    if (path / "zarr.json").is_file():
        yield None
        return
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StoreError(f"{path}: exists and is not a headspan store; choose another --out")
    with NewStore(path) as staged:
        plan = PlanInProgress(staged, urls, unit_images, names)
        try:
            yield plan
        finally:
            plan.stop()


def samples_of(
    urls: Mapping[str, str],
    shards: list[Shard],
    notes: list[BadImage],
    on_progress: Listener,
    names: MemberNames,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Sample]:
    """Yield the samples of all shards, until `stopped`; the shards and the notes on them are added to the lists."""
    for shard, samples in list_samples(urls, on_note=notes.append, on_progress=on_progress, names=names):
        shards.append(shard)
        for sample in samples:
            if stopped():
                return
            yield sample
