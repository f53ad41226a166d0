"""Runs on Ray's own cluster of several nodes on this machine, which are killed and added, as the driver is."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

import headspan as hs
from headspan.io.stores import storage_at
from headspan.store.worker_states import other_workers
from tests.conftest import image_members, relative_files, write_tar
from tests.engine.image_sources import TINY
from tests.engine.test_cli import HEADSPAN
from tests.s3_server import BUCKET, KEY_ID, SECRET, Server, serving

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'headspan[ray]'")

# A kill of a node, a node that joins, and a kill of the driver, at random numbers of finished units.
EVENTS = ("kill", "add", "driver", "kill", "add", "kill", "add", "driver")


class Nodes:
    """The running program tests/ray_nodes.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()
        self.alive: list[str] = []

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _order(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def add(self) -> None:
        self.alive.append(self._order("add"))

    def kill(self, name: str) -> None:
        self.alive.remove(name)
        assert self._order(f"kill {name}") == "killed"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of S3, which is in the environment of all nodes."""
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def nodes(server: Server) -> Iterator[Nodes]:
    command = [sys.executable, "-m", "tests.ray_nodes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        found = Nodes(process)
        found.add()
        yield found
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)


def command(folder: Path, images: int, out: Path | str) -> list[str]:
    """A run of a tiny model over random images, in units of eight."""
    config, tar = folder / "headspan-tiny.json", folder / "0.tar"
    if not tar.exists():
        config.write_text(json.dumps(TINY))
        write_tar(tar, image_members(range(images), (2,)))
    options = ["--layers", "all", "--unit-images", "8", "--batch-size", "1", "--device", "cpu", "--workers", "1"]
    model = ["--model", str(config), "--pretrained", "random:0"]
    return [*HEADSPAN, "precompute", str(tar), *model, *options, "--out", str(out)]


@pytest.mark.full_size
def test_a_run_on_a_cluster_gives_the_store_of_a_single_process(nodes: Nodes, tmp_path: Path) -> None:
    subprocess.run(command(tmp_path, 24, tmp_path / "alone.zarr"), check=True, capture_output=True)
    out = tmp_path / "s.zarr"
    done = subprocess.run(
        [*command(tmp_path, 24, out), "--ray", nodes.address], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert relative_files(out) == relative_files(tmp_path / "alone.zarr")
    said = done.stderr.splitlines()
    assert said[0] == f"the Ray cluster at {nodes.address}: 1 worker of 1 core on 1 node"
    # Neither Ray nor the worker prints between the lines of the progress.
    starts = ("headspan-tiny on", "plan: ", "24 images: ", "images: ")
    assert [line for line in said[1:] if not line.startswith(starts)] == []
    assert done.stdout.startswith("23 images stored in ")


@pytest.mark.full_size
def test_a_driver_that_is_interrupted_says_so_and_is_continued_to_the_same_store_in_a_bucket(
    nodes: Nodes, server: Server, tmp_path: Path
) -> None:
    images = 160
    subprocess.run(command(tmp_path, images, tmp_path / "alone.zarr"), check=True, capture_output=True)
    run = [*command(tmp_path, images, f"s3://{BUCKET}/s.zarr"), "--ray", nodes.address]
    driver = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until = time.monotonic() + 240
    while not any("commits/unit-" in key and key.endswith(".json") for key in server.keys("s.zarr/")):
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate()
    assert driver.returncode == 130, said
    assert said.splitlines()[-1] == "headspan: interrupted; finished units are kept; run the same command to continue"
    assert KEY_ID not in said
    assert SECRET not in said
    # The workers have ended, and have left nothing of their own.
    left = [key for key in server.keys("s.zarr/") if "/writers/" in key or "/staged/" in key]
    assert [key for key in left if not key.endswith("/run.0")] == []
    again = subprocess.run(run, check=False, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "skipped" in again.stdout or "already" in again.stdout, again.stdout
    assert server.keys("s.zarr/") == relative_files(tmp_path / "alone.zarr")


@pytest.mark.full_size
def test_nodes_and_drivers_that_are_killed_leave_the_same_bytes_and_repeat_only_units_in_flight(
    nodes: Nodes, tmp_path: Path
) -> None:
    images = 8 * int(os.environ.get("HEADSPAN_RAY_UNITS", "240"))
    subprocess.run(command(tmp_path, images, tmp_path / "alone.zarr"), check=True, capture_output=True)
    out = tmp_path / "s.zarr"
    run = [*command(tmp_path, images, out), "--ray", nodes.address]
    nodes.add()
    draw = random.Random(0)
    units = images // 8
    moments = sorted(draw.sample(range(1, units * 3 // 4), len(EVENTS)))
    pending = list(zip(moments, EVENTS, strict=True))
    began = time.monotonic()
    driver = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # The units that each worker was seen to have in flight, and those that were committed before it was first seen.
    taken: dict[str, set[int]] = {}
    known: dict[str, set[int]] = {}
    committed: set[int] = set()
    kills: Counter[str] = Counter()
    while driver.poll() is None:
        if out.exists():
            for worker in other_workers(storage_at(out)):
                known.setdefault(worker.token, set(committed))
                taken.setdefault(worker.token, set()).update(worker.in_flight)
            committed = {record.unit for record in hs.open(out, include_failed=True).contents.records}
        if pending and len(committed) >= pending[0][0]:
            _, event = pending.pop(0)
            kills[event] += 1
            if event == "kill":
                nodes.kill(draw.choice(nodes.alive))
            elif event == "add":
                nodes.add()
            else:
                driver.send_signal(signal.SIGKILL)
                driver.communicate()
                driver = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        time.sleep(0.02)
    _, said = driver.communicate()
    assert driver.returncode == 0, said
    assert not pending
    assert relative_files(out) == relative_files(tmp_path / "alone.zarr")
    for token, units_before in known.items():
        assert not taken[token] & units_before
    repeated = Counter(unit for found in taken.values() for unit in found)
    report = {
        "units": units,
        "events": kills,
        "workers": len(taken),
        "units_computed_again": sum(count - 1 for count in repeated.values()),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(report))
