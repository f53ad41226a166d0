"""Runs on a Ray cluster, with a cluster in this process in the place of Ray's: where workers start, and what ends them.

tests/engine/test_ray_cluster.py has Ray's own cluster.
"""

from __future__ import annotations

import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.config import PrecomputeSettings
from headspan.errors import HeadspanError, SettingsError, SourceError, StoreError
from headspan.events import NOTE, Progress
from headspan.io.grpc_servers import is_grpc_server
from headspan.io.stores import storage_at
from headspan.run import precompute as pipeline
from headspan.run.encoder import prepare
from headspan.run.executors import device_main, ray_pool
from headspan.run.executors import process as process_module
from headspan.run.executors.messages import (
    Committed,
    Ended,
    Event,
    Failed,
    Finished,
    Message,
    Order,
    line_of,
    message_of,
)
from headspan.run.executors.ray import RayWorkers
from headspan.run.executors.ray_actor import worker_class
from headspan.run.executors.ray_cluster import Facts, Lost, RayCluster
from headspan.run.executors.ray_nodes import Node, Share, openings
from headspan.store.write.workers import WorkerLog
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files

HERE = Facts({"headspan": version("headspan"), "Python": f"{sys.version_info[0]}.{sys.version_info[1]}"})


class Killed(BaseException):
    """Ends the work of a worker at once, as SIGKILL would."""


@dataclass(eq=False)
class FakeWorker:
    """A worker that computes in this process, as soon as its first messages are asked for."""

    node: Node
    cpus: int
    gpus: int
    facts: Facts = HERE
    # It ends after this many commits; None if it computes to the end.
    commits: int | None = None
    started: float = field(default_factory=time.monotonic)
    answered: bool = False
    order: Order | None = None
    stopped: bool = False
    ended: bool = False

    def begin(self, device: str, folder: str, order: bytes) -> None:
        found = message_of(order)
        assert isinstance(found, Order)
        self.order = found

    def compute(self) -> list[Message] | Lost:
        assert self.order is not None
        sent: list[Message] = []

        def on_commit(record: Any) -> None:
            sent.append(Committed.of(record))
            if self.commits is not None and len([each for each in sent if isinstance(each, Committed)]) >= self.commits:
                raise Killed

        def on_progress(event: Progress) -> None:
            if event.stage == "images":
                sent.append(Event(event.stage, event.done, event.total, event.note))

        self.ended = True
        try:
            done = pipeline.precompute(self.order.for_device(), on_progress, on_commit)
        except Killed:
            return [*sent, Ended("was ended by SIGKILL")]
        except HeadspanError as error:
            return [*sent, Failed(type(error).__name__, str(error))]
        return [*sent, Finished(done.seconds), Ended("ended with exit code 0")]


@dataclass(eq=False)
class FakeCluster:
    """Nodes in this process; `plan` says what the workers of a node do, one after the other."""

    alive: list[Node]
    plan: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    # Called before the answers of each round.
    on_round: Callable[[FakeCluster], None] = lambda cluster: None
    name: str = "the cluster"
    started: list[FakeWorker] = field(default_factory=list)
    left: bool = False

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.left = True

    def nodes(self) -> list[Node]:
        return list(self.alive)

    def start(self, node: Node, cpus: int, gpus: int) -> FakeWorker:
        assert node in self.alive
        steps = self.plan.get(node.id, [])
        worker = FakeWorker(node, cpus, gpus, **(steps.pop(0) if steps else {}))
        self.started.append(worker)
        return worker

    def answers(self, workers: Sequence[FakeWorker], seconds: float) -> list[tuple[FakeWorker, Any]]:
        self.on_round(self)
        found: list[tuple[FakeWorker, Any]] = []
        for worker in workers:
            if worker.node not in self.alive:
                found.append((worker, Lost("the node died")))
            elif not worker.answered:
                worker.answered = True
                found.append((worker, worker.facts))
            elif worker.order is not None and not worker.ended:
                found.append((worker, worker.compute()))
        return found

    def end(self, workers: Sequence[FakeWorker]) -> None:
        for worker in workers:
            worker.stopped = True


def node(name: str, cpus: float = 1, gpus: float = 0) -> Node:
    return Node(f"id-{name}", name, float(cpus), float(gpus))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are listed in every round, and a run without workers waits for none."""
    monkeypatch.setattr(ray_pool, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(ray_pool, "_NODES_SECONDS", 0.05)


@pytest.fixture
def warm(toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All workers share one encoder."""
    encoder = prepare(PrecomputeSettings.from_dict({"out": "none", **settings(toy_run)}))
    monkeypatch.setattr(pipeline, "prepare", lambda *arguments: encoder)
    return


def settings(toy_run: ToyRun, **changed: Any) -> dict[str, Any]:
    return toy_run.settings(**{"emit": ("heads",), "unit_images": 8, **changed})


def run_on(
    cluster: FakeCluster, toy_run: ToyRun, out: Path, executor: hs.Ray | None = None, **changed: Any
) -> tuple[hs.Summary, list[str]]:
    """The toy's run on `cluster`: its summary and notes. The notes on the toy's model and weights are left out."""
    given = PrecomputeSettings.from_dict({"out": str(out), **settings(toy_run, **changed)})
    notes: list[str] = []
    done: list[int] = []

    def listen(event: Progress) -> None:
        if event.stage == NOTE and "headspan-toy" not in event.note and "toy.safetensors" not in event.note:
            notes.append(event.note)
        if event.stage == "images":
            done.append(event.done)

    workers = RayWorkers(executor or hs.Ray(), given.device, listen, cluster)  # type: ignore[arg-type]
    with workers as devices, pipeline.decoding_processes(given) as decoding:
        summary = pipeline._precompute(devices.planning(given), listen, lambda record: None, devices, decoding)
    assert cluster.left
    assert done == sorted(done)
    return summary, notes


@pytest.fixture(scope="module")
def alone(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "s.zarr"
    hs.precompute(out=out, **settings(toy_run))
    return out


@pytest.mark.parametrize(
    ("share", "cpus", "gpus", "room", "each"),
    [
        (Share(True, None), 17, 4, 4, 4),
        (Share(True, None), 3, 4, 4, 0),
        (Share(True, 8), 17, 4, 2, 8),
        (Share(True, 8), 64, 0, 0, 8),
        (Share(True, None), 64, 0.5, 0, 64),
        (Share(False, 4), 15, 2, 3, 4),
        (Share(False, 4), 3, 0, 0, 4),
        (Share(False, 4, flexible=True), 3, 0, 1, 3),
        (Share(False, 4, flexible=True), 0, 0, 0, 1),
    ],
)
def test_a_node_has_room_by_its_gpus_and_cores(share: Share, cpus: float, gpus: float, room: int, each: int) -> None:
    assert (share.room(node("a", cpus, gpus)), share.cpus_on(node("a", cpus, gpus))) == (room, each)


def test_workers_start_on_the_nodes_that_have_the_fewest() -> None:
    nodes, share = [node("a", 4), node("b", 2), node("c", 8)], Share(False, 2)
    assert [each.name for each in openings(nodes, share, {}, (), 4)] == ["a", "b", "c", "a"]
    assert [each.name for each in openings(nodes, share, {"id-a": 2, "id-b": 1}, (), 99)] == ["c"] * 4
    # A node that has left still has workers until Ray reports their end.
    assert [each.name for each in openings(nodes, share, {"id-gone": 3}, ("id-a", "id-c"), 5)] == ["b"]
    assert openings(nodes, share, {"id-a": 2}, (), 2) == []


@pytest.mark.usefixtures("warm")
def test_a_node_dies_and_another_joins_and_the_store_has_the_same_bytes(
    toy_run: ToyRun, alone: Path, tmp_path: Path
) -> None:
    a, b = node("a"), node("b")

    def change(cluster: FakeCluster) -> None:
        # b joins when a's process has died, which committed two units; then a leaves.
        if cluster.started and cluster.started[0].ended:
            cluster.alive = [a, b] if len(cluster.started) < 3 else [b]

    cluster = FakeCluster([a], {a.id: [{"commits": 2}]}, change)
    summary, notes = run_on(cluster, toy_run, tmp_path / "s.zarr")
    assert relative_files(tmp_path / "s.zarr") == relative_files(alone)
    assert (summary.images, summary.skipped, summary.quarantined) == (67, 0, [])
    assert [bad.row for bad in summary.bad] == list(BROKEN_ROWS)
    assert notes == [
        "the cluster: 1 worker of 1 core on 1 node",
        "the process on node a was ended by SIGKILL",
        "node b has joined the cluster and gets 1 more worker",
        "node a has left; the other workers compute its units",
    ]
    assert [worker.node.name for worker in cluster.started] == ["a", "a", "b"]
    assert all(worker.stopped for worker in cluster.started[:2])
    order = cluster.started[2].order
    assert order is not None
    assert Path(order.settings["out"]).is_absolute()
    assert (order.settings["device"], order.settings["workers"], order.settings["max_bad"]) == ("cpu", 2, None)
    # A store that is finished needs no worker.
    again, _ = run_on(FakeCluster([a]), toy_run, tmp_path / "s.zarr")
    assert (again.images, again.skipped) == (0, 70)


@pytest.mark.usefixtures("warm")
def test_if_every_node_leaves_the_error_says_so_and_the_same_call_continues(
    toy_run: ToyRun, alone: Path, tmp_path: Path
) -> None:
    a, out = node("a"), tmp_path / "s.zarr"

    def leave(cluster: FakeCluster) -> None:
        if cluster.started and cluster.started[0].ended:
            cluster.alive = []

    with pytest.raises(HeadspanError) as found:
        run_on(FakeCluster([a], {a.id: [{"commits": 3}]}, leave), toy_run, out)
    ends = "the process on node a was ended by SIGKILL; node a has left"
    assert str(found.value) == f"{out}: no worker is left: {ends}; run the same command to continue"
    stored = hs.open(out).images
    assert 0 < stored < 67
    summary, _ = run_on(FakeCluster([a]), toy_run, out)
    assert summary.images == 67 - stored
    assert relative_files(out) == relative_files(alone)


@pytest.mark.usefixtures("warm")
def test_a_node_on_which_workers_die_again_and_again_is_left_out(toy_run: ToyRun, tmp_path: Path) -> None:
    a, b = node("a"), node("b")
    # They die before they commit anything; b has its worker when a is left out.
    cluster = FakeCluster([a, b], {a.id: [{"facts": HERE}] * 9})
    compute = FakeWorker.compute

    def broken(self: FakeWorker) -> list[Message] | Lost:
        if self.node == a:
            self.ended = True
            return [Ended("ended with exit code 1 (it printed, last line first: no device)")]
        ended = sum(worker.node == a and worker.stopped for worker in cluster.started)
        return compute(self) if ended == 4 else []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeWorker, "compute", broken)
        summary, notes = run_on(cluster, toy_run, tmp_path / "s.zarr")
    assert summary.images == 67
    assert [worker.node.name for worker in cluster.started].count("a") == 4
    died = "the process on node a ended with exit code 1 (it printed, last line first: no device)"
    others = "; the other workers compute its units"
    assert notes[1:] == [f"{died}{others}"] * 3 + [f"{died}, the 4th in a row, so the node is left out{others}"]


@pytest.mark.usefixtures("warm")
def test_other_versions_are_refused_by_the_name_of_their_node(toy_run: ToyRun, tmp_path: Path) -> None:
    mine, python = version("headspan"), HERE.versions["Python"]
    for versions, said in (
        ({"headspan": "9.9", "Python": python}, f"has headspan 9.9, but this run has headspan {mine}"),
        ({"headspan": None, "Python": python}, f"does not have headspan; install headspan {mine} on all nodes"),
        ({"headspan": mine, "Python": "3.99"}, f"has Python 3.99, but this run has Python {python}"),
    ):
        b = node("b")
        cluster = FakeCluster([b], {b.id: [{"facts": Facts(versions)}]})
        with pytest.raises(HeadspanError, match=f"^node b {said}"):
            run_on(cluster, toy_run, tmp_path / "s.zarr")
        assert hs.open(tmp_path / "s.zarr").images == 0
    # A node that joins later is left out, and the run goes on.
    a, late = node("a"), node("late")

    def join(cluster: FakeCluster) -> None:
        cluster.alive = [a, late] if cluster.started else [a]

    plan = {a.id: [{}], late.id: [{"facts": Facts({"headspan": "9.9", "Python": python})}]}
    compute = FakeWorker.compute
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeWorker, "compute", lambda self: compute(self) if len(cluster.started) == 2 else [])
        cluster = FakeCluster([a], plan, join)
        summary, notes = run_on(cluster, toy_run, tmp_path / "s.zarr")
    assert summary.images == 67
    assert notes[-1] == (
        f"node late has headspan 9.9, but this run has headspan {mine}; install the same version on all nodes; the "
        "node is left out"
    )


@pytest.mark.usefixtures("warm")
def test_what_a_worker_refuses_is_reported_with_the_name_of_its_node(toy_run: ToyRun, tmp_path: Path) -> None:
    def fails(*messages: Message) -> FakeCluster:
        cluster = FakeCluster([node("b")])
        patch.setattr(FakeWorker, "compute", lambda self: list(messages))
        return cluster

    with pytest.MonkeyPatch.context() as patch:
        other = Failed("StoreError", "/s: was made with image tower A, but this run asks for B; use the same settings")
        with pytest.raises(StoreError) as found:
            run_on(fails(other), toy_run, tmp_path / "s.zarr")
        assert str(found.value) == (
            "node b does not have what the store was planned with: /s: was made with image tower A, but this run asks "
            "for B; give all nodes the same weights and shards, and one store in a shared folder or a bucket"
        )
        gone = Failed("SourceError", "2.tar: is not there; restore it")
        with pytest.raises(SourceError, match=r"^node b: 2\.tar: is not there; restore it$"):
            run_on(fails(Event("images", 0, 70, ""), gone), toy_run, tmp_path / "s.zarr")
        bad = Committed(8, [{"row": 5, "key": "5", "url": "0.tar", "reason": "broken"}])
        with pytest.raises(SourceError, match=r"1 of 70 images is bad, more than --max-bad 0 allows"):
            run_on(fails(Event("images", 0, 70, ""), bad), toy_run, tmp_path / "s.zarr", max_bad=0)


def test_a_worker_recognises_the_store_by_the_log_of_the_driver(
    toy_run: ToyRun, alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device_main, "_FILES_APPEAR_SECONDS", 0.0)
    storage = storage_at(alone)
    with WorkerLog(storage, storage.token):
        device_main._refuse_other_store(str(alone), storage.token)
        with pytest.raises(StoreError, match="is not the store that was planned; put the store in a folder that all"):
            device_main._refuse_other_store(str(tmp_path / "missing.zarr"), storage.token)
        # A store with the same bytes on a disk of its own.
        copy = tmp_path / "copy.zarr"
        hs.precompute(out=copy, **settings(toy_run))
        with pytest.raises(StoreError, match=r"copy\.zarr is not the store that was planned"):
            device_main._refuse_other_store(str(copy), storage.token)


@pytest.mark.parametrize(
    ("nodes", "executor", "device", "said"),
    [
        ([node("a", 8)], hs.Ray(), "cuda", "the cluster has 1 node, but no node has a GPU; give --device cpu, or"),
        ([node("a", 8), node("b", 6)], hs.Ray(cpus=9), "cpu", "has 2 nodes, but no node has 9 cores, which --ray-cpus"),
        ([node("a", 0)], hs.Ray(), "cpu", "no node has a core for a worker; start Ray on nodes with --num-cpus"),
        ([node("a", 8, 2)], hs.Ray(), "auto", "has 2 GPUs, but this machine, which plans the run, has none; start"),
        ([node("a", 8)], hs.Ray(), "cpu,cpu", "--device cpu,cpu: with --ray, each worker has the GPU that Ray gives"),
    ],
    ids=["no GPU", "few cores", "no core", "no GPU here", "devices"],
)
def test_a_cluster_without_what_is_asked_for_is_refused(
    nodes: list[Node], executor: hs.Ray, device: str, said: str
) -> None:
    cluster = FakeCluster(nodes)
    with pytest.raises(SettingsError, match=said), RayWorkers(executor, device, print, cluster):  # type: ignore[arg-type]
        pass


def test_addresses_and_numbers_that_are_not_possible_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for given, said in (
        (["--ray", "data/0.tar"], "is not the address of a cluster; write HOST:PORT, auto or local, or put --ray"),
        (["--ray", "head:99999"], "is not the address of a cluster"),
        (["--ray", "ray://head:10001"], "is the address of a Ray client server; run the command on a node of the"),
        (["--ray", "auto", "--ray-cpus", "0"], "--ray-cpus 0 is too small; give at least 1"),
        (["--ray-workers", "2"], "--ray-workers is for runs on a Ray cluster; add --ray, or leave it out"),
    ):
        assert main(["precompute", "a.tar", "--out", "s.zarr", *given]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.parametrize("variable", [False, True])
def test_an_address_without_a_cluster_is_refused(variable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    where = f"--ray: no Ray cluster answers at {address}, the value of RAY_ADDRESS; correct it"
    given = f"--ray {address}: no Ray cluster answers at this address; start one with `ray start --head`"
    with (
        pytest.raises(SettingsError, match=re.escape(where if variable else given)),
        RayCluster(None if variable else address),
    ):
        pass


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"--ray needs Ray, .* install it with `pip install 'headspan\[ray\]'`"):
        RayCluster(None).__enter__()


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        # An empty frame of settings, with which every HTTP/2 server answers.
        (bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)), True),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        (b"", False),
        (None, False),
    ],
    ids=["gRPC", "HTTP/1.1", "closes", "silent"],
)
def test_only_a_server_that_answers_as_grpc_does_counts_as_one(answer: bytes | None, found: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                if answer is not None:
                    connection.sendall(answer)
                else:
                    connection.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        assert is_grpc_server(address, 0.3 if answer is None else 5.0) == found
        thread.join()
    assert not is_grpc_server(address, 1.0)


def test_the_actor_passes_on_what_its_process_sends_and_how_it_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    events = [Event("images", count, 9, "") for count in range(5)]
    lines = b"".join(map(line_of, [*events, Committed(4, []), Finished({})]))
    program = (
        "import os, sys; sys.stdin.readline(); print(sys.stdin.readline() and os.getcwd(), flush=True)\n"
        f"os.write(int(sys.argv[1]), {lines!r}); sys.exit(3)"
    )
    monkeypatch.setattr(process_module, "_BEGIN", program)
    worker = worker_class(collect_seconds=60.0)()
    assert Facts(worker.facts()) == HERE
    assert worker.begin("cpu", str(tmp_path), line_of(Order({}, 1, "token"))) == []
    # All that came until the end: of the counts of images, the first and the last.
    how = f"ended with exit code 3 (it printed, last line first: {tmp_path})"
    assert worker.messages() == [events[0], events[4], Committed(4, []), Finished({}), Ended(how)]
    worker.stop()
    assert isinstance(worker._inbox, queue.SimpleQueue)
