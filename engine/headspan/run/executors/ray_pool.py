"""The workers of one run on a cluster: start them where there is room, give them orders, and take their messages.

Nodes that join are used. If a worker or its node dies, the other workers compute its units, and another worker starts
where there is room. Nothing here needs Ray.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from headspan.config import ResolvedSettings
from headspan.errors import HeadspanError, StoreError, counted
from headspan.events import NOTE, Listener, Progress
from headspan.io.stores import is_object_store
from headspan.run.executors.messages import Ended, Failed, Message, Order, line_of
from headspan.run.executors.process import GRACE_SECONDS
from headspan.run.executors.ray_cluster import Facts, Lost
from headspan.run.executors.ray_nodes import Node, Share, openings
from headspan.run.executors.total import Total
from headspan.run.scheduler import TRIES
from headspan.store.write.unit import StoreWriter

# How often the nodes of the cluster are listed.
_LOOK_SECONDS = 2.0
# After this time, a worker that has not answered is said to wait for room.
_WAIT_SECONDS = 15.0
# How long a run without any worker waits for a node to join.
_NODES_SECONDS = 60.0
# A node is left out after so many workers that died on it in a row: more than the tries after which the unit that ends
# its process is quarantined.
_DEATHS = TRIES + 1


@runtime_checkable
class Worker(Protocol):
    """What a run needs of a worker, as in `RayWorker`."""

    node: Node
    started: float
    answered: bool

    def begin(self, device: str, folder: str, order: bytes) -> None: ...


@runtime_checkable
class Cluster(Protocol):
    """What a run needs of a cluster; `RayCluster` says what the methods do."""

    name: str

    def __enter__(self) -> Cluster: ...
    def __exit__(self, *error: object) -> None: ...
    def nodes(self) -> list[Node]: ...
    def start(self, node: Node, cpus: int, gpus: int) -> Worker: ...
    def answers(self, workers: Sequence[Any], seconds: float) -> list[tuple[Any, Facts | list[Message] | Lost]]: ...
    def end(self, workers: Sequence[Any]) -> None: ...


class WorkerPool:
    """The workers of one call."""

    def __init__(
        self,
        most: int | None,
        cluster: Cluster,
        share: Share,
        first: Sequence[Node],
        settings: ResolvedSettings,
        store: StoreWriter,
        on_progress: Listener,
    ) -> None:
        """Nothing is started yet. `most` is the largest number of workers; `first` are the nodes at the start."""
        self._most = most
        self._cluster = cluster
        self._share = share
        self._settings = settings
        self._store = store
        self._on_progress = on_progress
        self.total = Total(store, settings.max_bad, on_progress, "worker")
        # Those that have not ended.
        self._workers: list[Worker] = []
        # The nodes that were there at the start, those that have been seen, and those that are left out.
        self._first = {node.id for node in first}
        self._seen = set(self._first)
        self._left_out: set[str] = set()
        # Workers that died in a row, by node; and nodes of which it was said that they have no room.
        self._deaths: Counter[str] = Counter()
        self._full: set[str] = set()
        self._looked = self._worked = time.monotonic() - _LOOK_SECONDS

    def run(self) -> None:
        """Start workers and take their messages, until nothing is left to do or nobody is left to do it."""
        until: float | None = None
        while True:
            if not self.total.finished:
                self._fill()
            elif until is None and (self._store.commits.complete or self._store.unfinished() or not self._workers):
                # Nothing is left to do. The others find that out by themselves.
                until = time.monotonic() + GRACE_SECONDS
                self._drop([worker for worker in self._workers if not self.total.begun(worker)])
            now = time.monotonic()
            if until is not None and (not self._workers or now > until):
                return
            if self._workers:
                self._worked = now
            elif now - self._worked > _NODES_SECONDS:
                return
            for worker, answer in self._cluster.answers(self._workers, 1.0):
                if worker in self._workers:
                    self._take(worker, answer)

    def end(self) -> None:
        """End all workers."""
        self._cluster.end(self._workers)

    def _fill(self) -> None:
        """Start workers where there is room, and not more than there are units."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        nodes = self._cluster.nodes()
        units = max(1, self.total.units_left)
        running = Counter(worker.node.id for worker in self._workers)
        chosen = openings(nodes, self._share, running, self._left_out, min(units, self._most or units))
        joined = [node for node in nodes if node.id not in self._seen and node in chosen]
        for node in joined:
            self._seen.add(node.id)
            more = counted(chosen.count(node), "more worker")
            self._note(f"node {node.name} has joined the cluster and gets {more}")
        for node in chosen:
            worker = self._cluster.start(node, self._share.cpus_on(node), int(self._share.on_gpu))
            self._workers.append(worker)
            self.total.add(worker)
        for worker in self._workers:
            waits = now - worker.started > _WAIT_SECONDS and not worker.answered
            if waits and worker.node.id not in self._full:
                self._full.add(worker.node.id)
                self._note(f"workers wait for node {worker.node.name}, whose resources are in use or which is slow")

    def _take(self, worker: Worker, answer: Facts | list[Message] | Lost) -> None:
        match answer:
            case Facts():
                if (difference := _difference(answer)) is not None:
                    self._refuse(worker, HeadspanError(f"node {worker.node.name} {difference}"))
                else:
                    device = "cuda:0" if self._share.on_gpu else "cpu"
                    worker.begin(device, str(Path.cwd()), line_of(self._order(worker.node)))
            case Lost(reason=reason):
                alive = any(node.id == worker.node.id for node in self._cluster.nodes())
                self._deaths[worker.node.id] += alive
                name = worker.node.name
                self._died(
                    worker, f"the worker on node {name} was lost ({reason})" if alive else f"node {name} has left"
                )
            case messages:
                for message in messages:
                    if worker in self._workers:
                        self._take_message(worker, message)

    def _take_message(self, worker: Worker, message: Message) -> None:
        name = worker.node.name
        match message:
            case Failed():
                error = message.error
                if isinstance(error, StoreError) and not self.total.begun(worker):
                    # What it says to do is for the user of a single machine.
                    what = str(error).partition(";")[0]
                    error = StoreError(
                        f"node {name} does not have what the store was planned with: {what}; give all nodes the same "
                        "weights and shards, and one store in a shared folder or a bucket"
                    )
                else:
                    error = type(error)(f"node {name}: {error}")
                self._refuse(worker, error)
            case Ended(how=how):
                self._deaths[worker.node.id] += 1
                self._died(worker, f"the process on node {name} {how}")
            case _:
                before = self.total.committed(worker)
                self.total.take(worker, message)
                if self.total.committed(worker) > before:
                    self._deaths[worker.node.id] = 0

    def _refuse(self, worker: Worker, error: HeadspanError) -> None:
        """Raise `error`; or leave out the worker's node, if it joined during the run and has computed nothing."""
        if worker.node.id in self._first or self.total.begun(worker):
            raise error
        self._left_out.add(worker.node.id)
        self.total.note_death(str(error), f"{error}; the node is left out")
        self._drop([each for each in self._workers if each.node.id == worker.node.id])

    def _died(self, worker: Worker, how: str) -> None:
        self._workers.remove(worker)
        if self.total.end(worker):
            return
        self._cluster.end([worker])
        node = worker.node
        if self._deaths[node.id] >= _DEATHS:
            self._left_out.add(node.id)
            how += f", the {_DEATHS}th in a row, so the node is left out"
        note = f"{how}; the other workers compute its units" if self._workers else how
        self.total.note_death(how, "" if self.total.finished else note)

    def _drop(self, workers: Sequence[Worker]) -> None:
        """End workers that are not needed."""
        for worker in workers:
            self._workers.remove(worker)
            self.total.end(worker)
        self._cluster.end(workers)

    def _order(self, node: Node) -> Order:
        """What a worker on `node` is to do."""
        settings, cpus = self._settings, self._share.cpus_on(node)
        # A core of a GPU's worker launches kernels.
        workers = settings.workers or max(1, cpus - self._share.on_gpu)
        out = settings.out if is_object_store(settings.out) else str(Path(settings.out).absolute())
        # This process counts the bad images of all.
        own = replace(settings, out=out, device="cuda" if self._share.on_gpu else "cpu", workers=workers, max_bad=None)
        # On CPUs as many as in this process, since the last digits of numbers may depend on them.
        return Order(asdict(own), torch.get_num_threads(), self._store.token)

    def _note(self, sentence: str) -> None:
        self._on_progress(Progress(NOTE, 0, None, sentence))


def _difference(facts: Facts) -> str | None:
    """How the versions of a node differ from those of this process; None if they do not."""
    own = {"headspan": version("headspan"), "Python": ".".join(platform.python_version_tuple()[:2])}
    for name, mine in own.items():
        theirs = facts.versions.get(name)
        if theirs is None:
            return f"does not have {name}; install {name} {mine} on all nodes"
        if theirs != mine:
            return f"has {name} {theirs}, but this run has {name} {mine}; install the same version on all nodes"
    return None
