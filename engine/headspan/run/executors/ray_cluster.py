"""Connect to a Ray cluster, or start one on this machine, and talk to the workers on its nodes.

Ray collects no usage statistics here, and neither its logs nor what workers print reach the terminal.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headspan.errors import SettingsError, one_line, shortened
from headspan.io.grpc_servers import is_grpc_server
from headspan.ray_settings import LOCAL, RUNNING
from headspan.run.executors.messages import Message
from headspan.run.executors.process import GRACE_SECONDS
from headspan.run.executors.ray_actor import worker_class
from headspan.run.executors.ray_nodes import Node

# How long a cluster may take to answer.
_ANSWER_SECONDS = 5.0
# Nothing is stored in Ray; this is the least that it takes.
_OBJECT_STORE_BYTES = 80 << 20
# Set before Ray is imported, unless the user has set them. A machine that is busy takes long to start a cluster, and
# without the last one Ray warns of a change of its own to CUDA_VISIBLE_DEVICES.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """The versions of a worker's node, by their name; None for what is not installed."""

    versions: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker whose actor has ended, and Ray's reason."""

    reason: str


class RayWorker:
    """An actor on a node, with at most one question that it has not answered yet."""

    def __init__(self, node: Node, actor: Any) -> None:
        self.node = node
        self.actor = actor
        self.started = time.monotonic()
        # Whether it has answered once.
        self.answered = False
        self.question = actor.facts.remote()

    def begin(self, device: str, folder: str, order: bytes) -> None:
        """Let the worker compute."""
        self.question = self.actor.begin.remote(device, folder, order)


class RayCluster:
    """A connection to a cluster, in a `with` block; a cluster that was started for it ends with the block."""

    def __init__(self, address: str | None) -> None:
        self._address = address
        # Which cluster it is, in words.
        self.name = ""
        self._connected = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> RayCluster:
        """Connect. Raises SettingsError if Ray is not installed, or if no cluster answers at the address."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise SettingsError(
                "--ray needs Ray, which is not installed; install it with `pip install 'headspan[ray]'`"
            ) from error
        self._ray = ray
        if ray.is_initialized():
            self._join_present()
            return self
        address, self.name = self._find()
        # Ray replaces the handler, with one that does not let this process end its work.
        in_main_thread = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM)
        try:
            self._connect(address)
        finally:
            if in_main_thread:
                signal.signal(signal.SIGTERM, before)
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._connected:
                self._connected = False
                self._ray.shutdown()
        finally:
            self._delete_folder()

    def nodes(self) -> list[Node]:
        """The nodes that are alive, each with a name of its own."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        counts = Counter(node["NodeName"] for node in alive)
        return [
            Node(
                node["NodeID"],
                node["NodeName"] if counts[node["NodeName"]] == 1 else f"{node['NodeName']} ({node['NodeID'][:6]})",
                float(node["Resources"].get("CPU", 0)),
                float(node["Resources"].get("GPU", 0)),
            )
            for node in alive
        ]

    def start(self, node: Node, cpus: int, gpus: int) -> RayWorker:
        """Start a worker on `node`, as soon as the cores and GPUs are free there."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = self._ray.remote(worker_class()).options(
            num_cpus=cpus,
            num_gpus=gpus,
            # One thread waits for messages while another one ends the process.
            max_concurrency=2,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        return RayWorker(node, actor.remote())

    def answers(
        self, workers: Sequence[RayWorker], seconds: float
    ) -> list[tuple[RayWorker, Facts | list[Message] | Lost]]:
        """Wait up to `seconds` for answers of `workers`, and return those that are there."""
        asked = {worker.question: worker for worker in workers}
        if not asked:
            time.sleep(seconds)
            return []
        questions = list(asked)
        first, _ = self._ray.wait(questions, num_returns=1, timeout=seconds)
        ready, _ = self._ray.wait(questions, num_returns=len(questions), timeout=0) if first else ([], [])
        return [(asked[question], self._answer(asked[question])) for question in ready]

    def end(self, workers: Sequence[RayWorker]) -> None:
        """End `workers`, together; one that does not delete its staged files in time is killed."""
        if not workers:
            return
        try:
            stopped = [worker.actor.stop.remote() for worker in workers]
            self._ray.wait(stopped, num_returns=len(stopped), timeout=GRACE_SECONDS + _ANSWER_SECONDS)
        finally:
            for worker in workers:
                self._ray.kill(worker.actor)

    def _delete_folder(self) -> None:
        """Delete what a cluster of this machine alone has written."""
        if self._folder is not None:
            self._folder.cleanup()

    def _answer(self, worker: RayWorker) -> Facts | list[Message] | Lost:
        try:
            found = self._ray.get(worker.question)
        except self._ray.exceptions.RayError as error:
            return Lost(shortened(one_line(error), 200))
        worker.answered = True
        if isinstance(found, dict):
            return Facts(found)
        messages: list[Message] = found
        worker.question = worker.actor.messages.remote()
        return messages

    def _join_present(self) -> None:
        present = self._ray.get_runtime_context().gcs_address
        if self._address not in (None, RUNNING, present):
            raise SettingsError(
                f"--ray {self._address}: this process is connected to the Ray cluster at {present}; leave the address "
                "out to use that one, or call ray.shutdown() first"
            )
        self.name = f"the Ray cluster at {present}, to which this process is connected"

    def _find(self) -> tuple[str, str]:
        """The address for Ray, and the cluster in words."""
        from ray._private.services import find_bootstrap_address

        given = self._address
        if given not in (None, RUNNING, LOCAL):
            assert given is not None
            if not is_grpc_server(given, _ANSWER_SECONDS):
                raise SettingsError(
                    f"--ray {given}: no Ray cluster answers at this address; start one with `ray start --head`, or "
                    "leave the address out to start one on this machine alone"
                )
            return given, f"the Ray cluster at {given}"
        if given != LOCAL:
            if set_here := os.environ.get("RAY_ADDRESS"):
                if not is_grpc_server(set_here, _ANSWER_SECONDS):
                    raise SettingsError(
                        f"--ray: no Ray cluster answers at {set_here}, the value of RAY_ADDRESS; correct it, or give "
                        "the address of the cluster's head"
                    )
                return set_here, f"the Ray cluster at {set_here} (RAY_ADDRESS)"
            running = find_bootstrap_address(None)
            if running and is_grpc_server(running, _ANSWER_SECONDS):
                return running, f"the Ray cluster at {running}, which runs on this machine"
        if given == RUNNING:
            raise SettingsError(
                "--ray auto: no Ray cluster runs on this machine; start one with `ray start --head`, or leave the "
                "address out to start one for this run"
            )
        return LOCAL, "a Ray cluster of this machine alone, which this command starts and stops"

    def _connect(self, address: str) -> None:
        options: dict[str, Any] = {}
        if address == LOCAL:
            # A short path, since those of sockets are limited; deleted at the end.
            self._folder = tempfile.TemporaryDirectory("", "headspan-ray-", "/tmp", ignore_cleanup_errors=True)
            options = {
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": self._folder.name,
            }
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
        # Ray raises plain `Exception` too, as when a cluster does not start in time.
        except Exception as error:
            self._ray.shutdown()
            self._delete_folder()
            todo = (
                "run the command again when the machine is less busy"
                if address == LOCAL
                else "run the command on a node of the cluster, with its versions of Ray and Python"
            )
            raise SettingsError(
                f"--ray: cannot connect to {self.name}: {shortened(one_line(error)).rstrip('.')}; {todo}"
            ) from error
        self._connected = True
