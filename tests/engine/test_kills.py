"""Kill real processes with SIGKILL at chosen steps and at random moments, then run the same command again."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.run.verify import verify
from tests.conftest import image_members, relative_files, write_tar
from tests.engine.image_sources import SOURCES, TINY, write_sources

IMAGES, UNIT_IMAGES = 7, 2
AT_STEPS, AT_RANDOM = 24, 8


class KilledRuns:
    """The running program tests/killed_runs.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, out: Path, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"out": str(out), **order}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRuns]:
    folder = tmp_path_factory.mktemp("killed")
    config = folder / "headspan-tiny.json"
    config.write_text(json.dumps(TINY))
    shards = [
        write_tar(folder / f"{n}.tar", image_members(rows, (2,))) for n, rows in enumerate((range(4), range(4, 7)))
    ]
    settings = {
        "shards": [str(shard) for shard in shards],
        "model": str(config),
        "pretrained": "random:0",
        "layers": "all",
        "emit": ["heads", "mlps"],
        "device": "cpu",
        "batch_size": 2,
        "workers": 2,
        "unit_images": UNIT_IMAGES,
    }
    command = [sys.executable, "-m", "tests.killed_runs"]
    # Forked children do not have the threads of libraries, and would wait for them forever.
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=alone) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(settings) + "\n")
        process.stdin.flush()
        yield KilledRuns(process)
        process.stdin.close()
        assert process.wait() == 0


@pytest.fixture(scope="module")
def whole(runs: KilledRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The store of a run that was not killed, and the answer about that run."""
    out = tmp_path_factory.mktemp("whole") / "run.zarr"
    done = runs.run(out)
    assert done["status"] == 0
    return out, done


def test_a_run_killed_at_any_moment_and_resumed_gives_the_same_store_and_repeats_only_units_in_flight(
    runs: KilledRuns, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, done = whole
    wanted, arrays = relative_files(path), dict(hs.open(path, include_failed=True).contents.row_arrays())
    reference = {name: np.asarray(array[...]) for name, array in arrays.items()}
    draw = random.Random(0)
    steps = done["steps"]
    # The first and last of every kind of step, and others at random.
    first = {steps.index(kind) for kind in set(steps)}
    last = {len(steps) - 1 - steps[::-1].index(kind) for kind in set(steps)}
    chosen = sorted(first | last)
    chosen += draw.sample(sorted(set(range(len(steps))) - set(chosen)), max(0, AT_STEPS - len(chosen)))
    orders: list[dict[str, Any]] = [{"last": step} for step in chosen]
    orders += [{"after": draw.uniform(0, done["seconds"])} for _ in range(AT_RANDOM)]
    kills = 0
    for number, order in enumerate(orders):
        out = tmp_path / str(number) / "run.zarr"
        out.parent.mkdir()
        killed = runs.run(out, **order)
        # On a machine that has become faster, a run may end before the moment that was drawn for it.
        assert killed["status"] == -9 or "after" in order
        kills += killed["status"] == -9
        committed: set[int] = set()
        if out.exists():
            # Committed rows are complete and correct, before the run is resumed.
            store = hs.open(out, include_failed=True)
            committed = {
                row
                for record in store.contents.records
                for row in range(record.first_row, record.first_row + record.rows)
            }
            for name, array in store.contents.row_arrays():
                rows = sorted(committed)
                assert np.asarray(array[...])[rows].tobytes() == reference[name][rows].tobytes(), (order, name)
        again = runs.run(out)
        assert again["status"] == 0, order
        assert relative_files(out) == wanted, (order, sorted(set(relative_files(out)) ^ set(wanted)))
        assert [entry.name for entry in out.parent.iterdir()] == ["run.zarr"], order
        assert not committed & set(again["rows"]), order
        assert sorted({*killed["rows"], *again["rows"]}) == list(range(IMAGES)), order
        assert len(set(again["rows"])) == len(again["rows"]), order
    assert kills > AT_STEPS
    assert verify(hs.open(out)).problems == ()


def test_a_run_killed_several_times_gives_the_same_store(
    runs: KilledRuns, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, _ = whole
    out = tmp_path / "run.zarr"
    # Each run is killed some steps later than the one before, so that most runs commit something.
    for number in range(6):
        runs.run(out, last=60 + 25 * number)
    final = runs.run(out)
    assert final["status"] == 0
    assert relative_files(out) == relative_files(path)


def test_a_run_that_decodes_in_processes_gives_the_same_store_when_it_is_killed_and_resumed(
    runs: KilledRuns, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    path, _ = whole
    out = tmp_path / "run.zarr"
    statuses = [runs.run(out, last=last, processes=True)["status"] for last in (20, 70, 110)]
    assert statuses[0] == -9
    assert runs.run(out, processes=True)["status"] == 0
    assert relative_files(out) == relative_files(path)


def test_several_processes_on_one_store_give_the_store_that_one_would_give(
    runs: KilledRuns, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    done = runs.run(out, writers=3)
    assert done["status"] == 0
    assert relative_files(out) == relative_files(whole[0])


@pytest.mark.parametrize("source", SOURCES)
def test_a_run_over_any_kind_of_source_is_killed_and_resumed_to_the_same_bytes(
    source: str, runs: KilledRuns, tmp_path: Path
) -> None:
    shards = write_sources(tmp_path / "sources")[source]
    order = {"settings": {"shards": shards}}
    done = runs.run(tmp_path / "whole.zarr", **order)
    assert done["status"] == 0
    wanted = relative_files(tmp_path / "whole.zarr")
    draw = random.Random(1)
    for number, last in enumerate(sorted(draw.sample(range(len(done["steps"])), 2))):
        out = tmp_path / f"{number}.zarr"
        processes = number % 2 == 1
        assert runs.run(out, last=last, processes=processes, **order)["status"] == -9
        again = runs.run(out, processes=processes, **order)
        assert again["status"] == 0
        assert relative_files(out) == wanted, last
