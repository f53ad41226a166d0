"""Compute the units of a store on the nodes of a Ray cluster, with one worker for each GPU or for some cores.

This process plans the store, starts workers where the cluster has room, and adds up what they report. The scheduler of
each worker gives it other units than the others have, through the store, which all nodes see. Nodes that join are used;
the workers of a node that leaves are started again elsewhere, or when it is back.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch

from headspan.config import AUTO, PrecomputeSettings, ResolvedSettings
from headspan.errors import HeadspanError, SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress
from headspan.io.stores import is_object_store
from headspan.ray_settings import Ray
from headspan.run.executors.messages import Ended, Failed, Message, Order, line_of
from headspan.run.executors.process import GRACE_SECONDS
from headspan.run.executors.ray_cluster import Facts, Lost, RayCluster
from headspan.run.executors.ray_nodes import Node, Share, openings
from headspan.run.executors.total import Total
from headspan.run.scheduler import TRIES
from headspan.run.summary import Summary
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog

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


class RayWorkers:
    """The workers of a run on a cluster, in a `with` block that connects to it and ends all of them."""

    def __init__(self, ray: Ray, device: str, on_progress: Listener, cluster: Cluster | None = None) -> None:
        """Nothing is started yet. Raises SettingsError if `device` names single devices."""
        if device not in (AUTO, "cpu", "cuda"):
            raise SettingsError(
                f"--device {device}: with --ray, each worker has the GPU that Ray gives it; write auto, cpu or cuda"
            )
        self._ray = ray
        self._device = device
        self._on_progress = on_progress
        self._cluster: Cluster = cluster or RayCluster(ray.address)
        self._threads = torch.get_num_threads()

    def __enter__(self) -> RayWorkers:
        """Connect to the cluster. Raises SettingsError if there is none, or if it has not what a worker needs."""
        self._cluster.__enter__()
        try:
            self._first = self._cluster.nodes()
            self._share = self._share_on(self._first)
            self.count = len(openings(self._first, self._share, {}, (), self._ray.workers or 1 << 16))
            if not self.count:
                raise SettingsError(self._lack())
            self._note(f"{self._cluster.name}: {self._in_words()}")
        except BaseException:
            self._cluster.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.set_num_threads(self._threads)
        self._cluster.__exit__(kind, error, trace)

    def __bool__(self) -> bool:
        return True

    def planning(self, settings: PrecomputeSettings) -> PrecomputeSettings:
        """The settings with which this process plans the store: for one device of the kind that the workers have."""
        if self._share.on_gpu:
            return replace(settings, device="cuda")
        # As many as the workers have, which the store records.
        torch.set_num_threads(self._ray.cpus or self._threads)
        return replace(settings, device="cpu")

    def run(self, settings: ResolvedSettings, store: StoreWriter, on_progress: Listener) -> Summary:
        """Compute the unfinished units of `store`, which is planned.

        Raises HeadspanError if a node that was there at the start differs in versions, weights or store, or if no
        worker is left; the first HeadspanError that a worker raises; and SourceError if together they find more bad
        images than `max_bad` allows.
        """
        # The nodes recognise the store by this process's log.
        with WorkerLog(store.storage, store.token):
            pool = _Pool(self._ray, self._cluster, self._share, self._first, settings, store, on_progress)
            try:
                pool.run()
            finally:
                pool.end()
            return pool.total.summary()

    def _share_on(self, nodes: Sequence[Node]) -> Share:
        """What each worker gets. Raises SettingsError if this machine cannot plan for the GPUs of the cluster."""
        on_gpu = self._device == "cuda" or (self._device == AUTO and torch.cuda.is_available())
        gpus = sum(int(node.gpus) for node in nodes)
        if self._device == AUTO and gpus and not on_gpu:
            raise SettingsError(
                f"--ray: {self._cluster.name} has {counted(gpus, 'GPU')}, but this machine, which plans the run, has "
                "none; start the command on a node with a GPU, or give --device cpu"
            )
        if on_gpu:
            return Share(True, self._ray.cpus)
        return Share(False, self._ray.cpus or self._threads, flexible=self._ray.cpus is None)

    def _lack(self) -> str:
        nodes, wanted = self._first, self._ray.cpus
        cpus = max((int(node.cpus) for node in nodes), default=0)
        has = f"--ray: {self._cluster.name} has {counted(len(nodes), 'node')}, but no node has "
        if self._share.on_gpu and not any(int(node.gpus) for node in nodes):
            return f"{has}a GPU; give --device cpu, or start Ray on nodes with GPUs"
        if wanted is not None:
            return f"{has}{counted(wanted, 'core')}, which --ray-cpus asks for; give at most {cpus}"
        return f"{has}a core for a worker; start Ray on nodes with --num-cpus"

    def _in_words(self) -> str:
        chosen = openings(self._first, self._share, {}, (), self.count)
        gpu = "1 GPU and " if self._share.on_gpu else ""
        cpus = sorted({self._share.cpus_on(node) for node in chosen})
        cores = counted(cpus[0], "core") if len(cpus) == 1 else f"{cpus[0]} to {cpus[-1]} cores"
        nodes = counted(len({node.id for node in chosen}), "node")
        return f"{counted(self.count, 'worker')} of {gpu}{cores} on {nodes}"

    def _note(self, sentence: str) -> None:
        self._on_progress(Progress(NOTE, 0, None, sentence))


class _Pool:
    """The workers of one call."""

    def __init__(
        self,
        ray: Ray,
        cluster: Cluster,
        share: Share,
        first: Sequence[Node],
        settings: ResolvedSettings,
        store: StoreWriter,
        on_progress: Listener,
    ) -> None:
        self._most = ray.workers
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
            elif until is None:
                # Everything is committed. The others find that out by themselves.
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
