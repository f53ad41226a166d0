"""Compute the units of a store on the nodes of a Ray cluster, with one worker for each GPU or for some cores.

This process plans the store, starts workers where the cluster has room, and adds up what they report. The scheduler of
each worker gives it other units than the others have, through the store, which all nodes see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType

import torch

from headspan.config import AUTO, PrecomputeSettings, ResolvedSettings
from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress
from headspan.ray_settings import MOST, Ray
from headspan.run.executors.ray_cluster import RayCluster
from headspan.run.executors.ray_nodes import Node, Share, openings
from headspan.run.executors.ray_pool import Cluster, WorkerPool
from headspan.run.summary import Summary
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import WorkerLog


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
            self.count = len(openings(self._first, self._share, {}, (), self._ray.workers or MOST))
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
            pool = WorkerPool(self._ray.workers, self._cluster, self._share, self._first, settings, store, on_progress)
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
