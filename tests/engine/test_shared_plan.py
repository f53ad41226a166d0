"""Several processes that plan one store read each tar once, in a folder and in a bucket, also when one is killed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from headspan.errors import SourceError
from headspan.events import Progress, ignore
from headspan.io.locations import Location, StoreURL
from headspan.member_names import MemberNames
from headspan.run import plan_processes, shared_plan
from headspan.run.plan_ahead import Plan, begun_plan
from headspan.run.plan_processes import TarReaders
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage
from headspan.shards.urls import stored_names
from headspan.store.tables import SAMPLES, ReadShard, table_of
from headspan.store.write import plan_parts
from headspan.store.write.plan_parts import PlanParts
from tests.conftest import image_members, relative_files, write_tar
from tests.s3_server import BUCKET, serving

TARS, IN_PART = 7, 2
# Parts of two tars, the last of one.
PARTS = -(-TARS // IN_PART)


class _KilledError(BaseException):
    pass


def read_here(
    self: TarReaders, asked: Iterable[tuple[int, tuple[str, str]]]
) -> Generator[tuple[int, ReadShard], None, None]:
    """Read tars as `TarReaders` does, in this process, since others take a second to start."""
    left = iter(asked)
    # Ahead, as processes do.
    while some := list(islice(left, 3)):
        for number, (name, url) in some:
            notes: list[BadImage] = []
            fields: Counter[str] = Counter()
            shard, samples = scan(url, 0, notes.append, name, None, self._names, fields)
            yield number, (shard, table_of(samples, SAMPLES), notes, fields)


@pytest.fixture
def urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Tars of 1 to 6 images, one without any, which are planned in parts."""
    monkeypatch.setattr(plan_processes, "LEAST_TARS", TARS)
    monkeypatch.setattr(shared_plan, "PART_TARS", IN_PART)
    monkeypatch.setattr(TarReaders, "__enter__", lambda self: self)
    monkeypatch.setattr(TarReaders, "read", read_here)
    tars = [write_tar(tmp_path / f"{n}.tar", image_members(range(7 * n, 7 * n + n), (2,))) for n in range(1, TARS)]
    tars.insert(3, write_tar(tmp_path / "none.tar", [("a.txt", b"x")]))
    return stored_names([str(tar) for tar in tars])


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts that planners have put, in order."""
    found: list[int] = []
    original = PlanParts.put

    def noted(self: PlanParts, number: int, *rest: Any) -> None:
        original(self, number, *rest)
        found.append(number)

    monkeypatch.setattr(PlanParts, "put", noted)
    return found


Found = tuple[Plan, dict[str, bytes]]


def planned(path: Location, urls: dict[str, str], events: list[Progress] | None = None) -> Found | None:
    """The plan and its tables; None if another process has planned the store. The store then exists."""
    with begun_plan(path, urls, 4, MemberNames()) as plan:
        assert plan is not None
        read = plan.result(ignore if events is None else events.append)
        if read is None:
            return None
        tables = relative_files(plan.staged.folder / "records" / "samples")
        if isinstance(path, Path):
            path.mkdir()
            (path / "zarr.json").touch()
        return read, tables


def planned_alone(folder: Path, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Found:
    """The plan of one process that shares it with nobody."""
    with monkeypatch.context() as patched:
        patched.setattr(plan_processes, "LEAST_TARS", TARS + 1)
        found = planned(folder / "alone.zarr", urls)
    assert found is not None
    return found


def test_planners_that_begin_together_read_each_part_once(
    urls: dict[str, str], put: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = planned_alone(tmp_path, urls, monkeypatch)
    both, take = threading.Barrier(2, timeout=60), PlanParts.take
    taken: dict[int, list[int]] = {}

    def noted(self: PlanParts, number: int) -> bool:
        mine = take(self, number)
        if mine:
            taken.setdefault(id(self), []).append(number)
            if len(taken[id(self)]) == 1:
                # Until the other one has begun too.
                both.wait()
        return mine

    monkeypatch.setattr(PlanParts, "take", noted)
    out = tmp_path / "run.zarr"
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: planned(out, urls), range(2)))
    assert sorted(put) == list(range(PARTS))
    assert len(taken) == 2
    assert [each for each in found if each is not None] == [wanted]
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def left_parts(path: Location, urls: dict[str, str]) -> None:
    """Let a planner be killed that has put part 1 and has begun part 0."""
    tars = list(urls.items())
    parts = PlanParts(path, urls, MemberNames(), PARTS)
    parts._log.__enter__()
    assert [parts.take(number) for number in (0, 1)] == [True, True]
    read = TarReaders(IN_PART, MemberNames()).read((1, tar) for tar in tars[IN_PART : 2 * IN_PART])
    parts.put(1, [found for _, found in read])
    parts._log.__exit__(_KilledError)


@pytest.mark.parametrize("changed", [False, True])
def test_a_plan_whose_planner_was_killed_goes_on_from_its_parts(
    changed: bool, urls: dict[str, str], put: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    left_parts(out, urls)
    if changed:
        write_tar(tmp_path / "3.tar", image_members(range(5), (2,)))
    wanted = planned_alone(tmp_path, urls, monkeypatch)
    assert put == [1]
    if not changed:
        events: list[Progress] = []
        assert planned(out, urls, events) == wanted
        assert sorted(put) == list(range(PARTS))
        assert (events[-1].done, events[-1].total, events[-1].note) == (TARS, TARS, "21 images")
    else:
        assert planned(out, urls) == wanted
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


def test_a_damaged_part_is_read_again_and_a_damaged_tar_ends_the_plan(
    urls: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run.zarr"
    left_parts(out, urls)
    (part,) = tmp_path.glob(".run.zarr.parts-*/parts/*")
    part.write_bytes(part.read_bytes()[:-300])
    wanted = planned_alone(tmp_path, urls, monkeypatch)
    assert planned(out, urls) == wanted
    tar = tmp_path / "6.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])
    with pytest.raises(SourceError, match=r"6\.tar"):
        planned(tmp_path / "other.zarr", urls)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".")]


@pytest.fixture
def bucket() -> Iterator[StoreURL]:
    with serving() as server:
        yield StoreURL(f"s3://{BUCKET}/run.zarr")
        assert server.keys() == {}


def test_planners_of_a_store_in_a_bucket_take_over_the_parts_of_the_dead(
    bucket: StoreURL, urls: dict[str, str], put: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_parts(bucket, urls)
    # Its lease has ended.
    monkeypatch.setattr(plan_parts, "_LATE_SECONDS", -1.0)
    monkeypatch.setattr("headspan.store.worker_states.DEAD_SECONDS", 0.0)
    assert planned(bucket, urls) == planned_alone(tmp_path, urls, monkeypatch)
    assert sorted(put) == list(range(PARTS))
