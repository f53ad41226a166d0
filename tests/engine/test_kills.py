"""Kill real processes with SIGKILL at chosen steps and at random moments, then run the same command again."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.run.verify import verify
from tests.conftest import image_members, relative_files, write_tar
from tests.engine.image_sources import SOURCES, TINY, write_sources
from tests.engine.kill_checks import InBucket, KilledRuns, OnDisk, check_kill, chosen_kills, killed_runs
from tests.s3_server import Server, serving

UNIT_IMAGES = 2
AT_STEPS, AT_RANDOM = 24, 4
FEWER_AT_STEPS, FEWER_AT_RANDOM = 10, 2
# In the bucket, in pieces.
IN_BUCKET_AT_STEPS, IN_BUCKET_AT_RANDOM, PIECES = 52, 8, 10


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of S3, whose faults each test sets."""
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def runs(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KilledRuns]:
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
    # In the environment in which it finds the server.
    with killed_runs(settings) as program:
        yield program


@pytest.fixture(scope="module")
def whole(runs: KilledRuns, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The store of a run that was not killed, and the answer about that run."""
    out = tmp_path_factory.mktemp("whole") / "run.zarr"
    done = runs.run(out)
    assert done["status"] == 0
    return out, done


@pytest.fixture(scope="module")
def reference(whole: tuple[Path, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The values of its row arrays."""
    return {name: np.asarray(array[...]) for name, array in hs.open(whole[0]).contents.row_arrays()}


@pytest.mark.parametrize(
    ("before_steps", "at_steps", "at_random"),
    [
        (False, FEWER_AT_STEPS, FEWER_AT_RANDOM),
        pytest.param(False, AT_STEPS, AT_RANDOM, marks=pytest.mark.full_size),
        pytest.param(True, AT_STEPS, AT_RANDOM, marks=pytest.mark.full_size),
    ],
)
def test_a_run_killed_at_any_moment_and_resumed_gives_the_same_store_and_repeats_only_units_in_flight(
    before_steps: bool,
    at_steps: int,
    at_random: int,
    runs: KilledRuns,
    whole: tuple[Path, dict[str, Any]],
    reference: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    path, done = whole
    place, wanted, kills = OnDisk(tmp_path), relative_files(path), 0
    orders = chosen_kills(done["steps"], done["seconds"], at_steps, at_random, before_steps)
    for number, order in enumerate(orders):
        out = place.new(str(number))
        kills += check_kill(runs, out, place, order, wanted, reference)
        assert place.beside(out) == ["run.zarr"], order
    assert kills >= at_steps
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


def some_faults(seed: int) -> Any:
    """A server that is busy, slow and cut off now and then, and whose answers are sometimes lost."""
    draw = random.Random(seed)
    return lambda request: draw.choices((None, "busy", "lost", "cut", "half", 0.05), (90, 2, 2, 2, 2, 2))[0]


@pytest.fixture(scope="module")
def in_bucket(runs: KilledRuns, server: Server, whole: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """The answer about a run into the bucket that was not killed, whose store is that of the run on disk."""
    place = InBucket(server, "whole")
    done = runs.run(place.new("0"))
    assert done["status"] == 0
    assert place.files(place.new("0")) == relative_files(whole[0])
    place.delete(place.new("0"))
    return done


def check_kills_in_bucket(
    runs: KilledRuns, server: Server, whole: Path, reference: dict[str, np.ndarray], orders: list[dict[str, Any]]
) -> int:
    """Kill runs that write to the bucket, with faults, and resume them. Returns how many were killed.

    Their stores equal the one on disk, object by object.
    """
    wanted, place = relative_files(whole), InBucket(server, "killed")
    count, failures = 0, []
    for number, order in enumerate(orders):
        server.faults.fault = some_faults(order.get("last", number))
        out = place.new(str(number))
        try:
            count += check_kill(runs, out, place, order, wanted, reference)
            if place.beside(out) != ["run.zarr"]:
                # Uploads of the killed process that were too young are removed by whoever opens the store later.
                assert runs.run(out)["status"] == 0
            assert place.beside(out) == ["run.zarr"], order
        except AssertionError as error:
            failures.append((order, str(error), list(server.faults.recent)))
        finally:
            server.faults.fault = lambda request: None
            place.delete(out)
    assert not failures
    return count


def test_a_run_killed_while_it_writes_to_a_bucket_is_resumed_to_the_store_on_disk(
    runs: KilledRuns, server: Server, whole: tuple[Path, dict[str, Any]], reference: dict[str, np.ndarray]
) -> None:
    # While a unit is committed.
    assert check_kills_in_bucket(runs, server, whole[0], reference, [{"last": 800}]) == 1


@pytest.mark.full_size
@pytest.mark.parametrize("piece", range(PIECES))
def test_a_run_killed_at_any_moment_while_it_writes_to_a_bucket_is_resumed_to_the_store_on_disk(
    piece: int,
    in_bucket: dict[str, Any],
    runs: KilledRuns,
    server: Server,
    whole: tuple[Path, dict[str, Any]],
    reference: dict[str, np.ndarray],
) -> None:
    orders = chosen_kills(in_bucket["steps"], in_bucket["seconds"], IN_BUCKET_AT_STEPS, IN_BUCKET_AT_RANDOM)
    server.faults.injected.clear()
    orders = orders[piece::PIECES]
    kills = check_kills_in_bucket(runs, server, whole[0], reference, orders)
    assert kills >= sum("last" in order for order in orders)
    assert all(server.faults.injected[fault] for fault in ("busy", "lost", "cut", "half", "slow"))


@pytest.mark.full_size
def test_several_processes_on_one_store_in_a_bucket_give_the_store_on_disk(
    runs: KilledRuns, server: Server, whole: tuple[Path, dict[str, Any]]
) -> None:
    place = InBucket(server, "several")
    for number in range(4):
        server.faults.fault = some_faults(number)
        out = place.new(str(number))
        done = runs.run(out, writers=3)
        server.faults.fault = lambda request: None
        assert done["status"] == 0
        assert place.files(out) == relative_files(whole[0])


@pytest.mark.full_size
def test_one_of_several_processes_in_a_bucket_is_killed_and_the_others_finish(
    runs: KilledRuns, server: Server, whole: tuple[Path, dict[str, Any]]
) -> None:
    place = InBucket(server, "one-of-several")
    for number, after in enumerate((0.5, 1.5, 3.0)):
        out = place.new(str(number))
        assert runs.run(out, writers=3, after=after)["status"] in (0, -9)
        place.wait_for_death()
        assert runs.run(out)["status"] == 0
        place.wait_for_death()
        assert runs.run(out)["status"] == 0
        assert place.files(out) == relative_files(whole[0])
