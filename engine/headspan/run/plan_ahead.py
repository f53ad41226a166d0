"""Read the shards for a new store's plan on a thread, while the model is loaded.

Only local shards are read ahead. Reading a remote shard or a command cannot be stopped quickly if the model cannot be
loaded, so their plan is read afterwards, on the caller's thread. Progress is reported on the caller's thread, and only
once it waits for the plan, so that the order of events does not depend on which of the two takes longer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

from headspan.errors import StoreError
from headspan.events import Listener, Progress
from headspan.io.locations import Location, StoreURL
from headspan.io.retry import is_remote
from headspan.io.stores import storage_to_write
from headspan.member_names import MemberNames
from headspan.run.plan_processes import uses_processes
from headspan.run.shared_plan import PlannedElsewhereError, SharedPlan
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample, Shard
from headspan.store.consolidated import ROOT
from headspan.store.schema import RECORDS
from headspan.store.write.create import NewStore
from headspan.store.write.plan_claim import settle_plan

# How long the model waits for the first member of the first shard, or for the images that `--image-member` names.
_FIRST_SECONDS = 1.0


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
        self._found: Future[Plan | None] = Future()
        self._events: SimpleQueue[Progress | None] = SimpleQueue()
        self._stopped = threading.Event()
        # Set once something was read, or reading has failed.
        self._begun = threading.Event()
        # Held while the thread uses the folder.
        self._reading = threading.Lock()
        self._thread: threading.Thread | None = None
        # Holds this process's share in a plan that several processes make, until the store exists.
        self._shared = ExitStack()

    def begin(self) -> None:
        """Start the thread, if the shards are local."""
        if not any(map(is_remote, self._urls.values())):
            self._thread = threading.Thread(target=self._run, name="headspan-plan")
            self._thread.start()

    def refuse_unreadable(self) -> None:
        """Raise what reading local shards raises at once, so that a model is not loaded for shards that are none."""
        if self._thread is None:
            return
        self._begun.wait(_FIRST_SECONDS)
        if self._found.done() and self._found.exception() is not None:
            self._found.result()

    def result(self, on_progress: Listener) -> Plan | None:
        """Wait for the plan, and report the progress since it began; None if another process has planned the store.

        Raises what reading the shards raises.
        """
        if self._thread is None:
            return self._read(on_progress)
        while (event := self._events.get()) is not None:
            on_progress(event)
        return self._found.result()

    def stop(self) -> None:
        """End the thread, if it has not finished."""
        self._stopped.set()
        # A thread whose start was interrupted may not count as alive. If it begins later, it ends at once.
        with self._reading:
            pass
        if self._thread is not None and self._thread.is_alive():
            self._thread.join()
        self._shared.close()

    def _run(self) -> None:
        with self._reading:
            try:
                self._end_if_stopped()
                self._found.set_result(self._read(self._events.put))
            except BaseException as error:
                # It is raised where the plan is awaited.
                self._found.set_exception(error)
            finally:
                self._begun.set()
                self._events.put(None)

    def _read(self, on_progress: Listener) -> Plan | None:
        shards: list[Shard] = []
        notes: list[BadImage] = []
        if uses_processes(self._urls):
            path = self.staged.path
            share = SharedPlan(path, self._urls, self._names, lambda: _is_planned(path))
            self._shared.enter_context(share)
            # Closed in any case, so that no process outlives a failure.
            with closing(share.tables(shards, notes, on_progress, self._on_member)) as tables:
                try:
                    images = self.staged.plan_tables(tables, self._unit_images, notes)
                except PlannedElsewhereError:
                    return None
        else:
            samples = samples_of(self._urls, shards, notes, on_progress, self._names, self._on_member)
            images = self.staged.plan(samples, self._unit_images, notes)
        return Plan(shards, notes, images, self._unit_images)

    def _end_if_stopped(self) -> None:
        if self._stopped.is_set():
            raise _StoppedError

    def _on_member(self) -> None:
        self._end_if_stopped()
        # Whether a member is an image that the user names is known later.
        if self._names.image is None:
            self._begun.set()


class _StoppedError(Exception):
    """Nobody waits for the plan any more."""


@contextmanager
def begun_plan(
    path: Location, urls: Mapping[str, str], unit_images: int, names: MemberNames
) -> Iterator[PlanInProgress | None]:
    """Begin to plan a store at `path` over the shards `urls` (by name); None if there is a store already.

    The folder of the new store is deleted at the end, unless it has become the store. Raises StoreError if the path
    holds something else.
    """
    if _is_planned(path):
        yield None
        return
    with NewStore(path) as staged:
        plan = PlanInProgress(staged, urls, unit_images, names)
        try:
            plan.begin()
            yield plan
        finally:
            plan.stop()


def _is_planned(path: Location) -> bool:
    """Return whether there is a store at `path`. Raises StoreError if it holds something else, or cannot be written."""
    if isinstance(path, StoreURL):
        storage = storage_to_write(path)
        # A planner may have been killed after it claimed the store.
        planned = settle_plan(storage)
        other = not planned and any(not key.startswith(f"{RECORDS}/") for key in storage.list())
    else:
        planned = (path / ROOT).is_file()
        other = not planned and path.exists() and not (path.is_dir() and not any(path.iterdir()))
    if other:
        raise StoreError(f"{path}: exists and is not a headspan store; choose another --out")
    return planned


def samples_of(
    urls: Mapping[str, str],
    shards: list[Shard],
    notes: list[BadImage],
    on_progress: Listener,
    names: MemberNames,
    on_member: Callable[[], None] = lambda: None,
) -> Iterator[Sample]:
    """Yield the samples of all shards; the shards and the notes on them are added to the lists.

    `on_member` is called for each member and each sample. It may raise an error to end the reading.
    """
    for shard, samples in list_samples(
        urls, on_note=notes.append, on_progress=on_progress, names=names, on_member=on_member
    ):
        shards.append(shard)
        for sample in samples:
            on_member()
            yield sample
