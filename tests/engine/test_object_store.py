"""Stores in buckets: the promises of Storage, faults of the network and the server, two planners, and the errors."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

import headspan as hs
from headspan.errors import HeadspanError, StoreError
from headspan.io import object_store, ranged, staged_upload
from headspan.io.buckets import client, endpoint
from headspan.io.locations import StoreURL
from headspan.io.object_store import ObjectStorage
from headspan.io.staged_upload import SENT_AT_ONCE
from headspan.io.storage import StagedObject, Storage, named
from headspan.member_names import MemberNames
from headspan.run.plan_ahead import begun_plan
from headspan.store import results, schema
from headspan.store.write import plan_claim
from headspan.store.write.analyses import remove, save
from headspan.store.write.unit import StoreWriter
from tests.conftest import relative_files
from tests.engine.test_unit_writer import SHARD_BYTES, moments, new_store, numbers, planned_here
from tests.s3_server import BUCKET, KEY_ID, SECRET, Fault, Request, Server, serving

PART = 1024


@pytest.fixture(scope="module")
def started() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server without faults, and an empty bucket."""
    monkeypatch.setattr(object_store, "_fit", set())
    started.clear()
    yield started
    started.clear()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send files in parts of a kilobyte."""
    monkeypatch.setattr(staged_upload, "PART_BYTES", PART)
    monkeypatch.setattr(object_store, "PART_BYTES", PART)


def url(name: str = "run.zarr") -> StoreURL:
    return StoreURL(f"s3://{BUCKET}/{name}")


def storage(name: str = "run.zarr") -> ObjectStorage:
    return ObjectStorage(url(name))


def once(server: Server, kind: str, fault: Fault, skip: int = 0) -> None:
    """Let the server do `fault` to one request of this kind, the first after `skip` others."""
    left = [None] * (skip + 1)

    def choose(request: Request) -> Fault:
        if request.kind == kind and left:
            left.pop()
            return None if left else fault
        return None

    server.faults.fault = choose


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART + 257])
def test_a_file_in_a_bucket_is_staged_published_and_read(size: int, server: Server) -> None:
    first, second = storage(), storage()
    data = np.random.default_rng(size).bytes(size)
    checksum = (size, google_crc32c.value(data))
    with first.stage("a/b") as staged:
        assert isinstance(staged, StagedObject)
        memory = np.frombuffer(data, np.uint8).copy()
        for start in range(0, size, 700):
            staged.write(memory[start : start + 700].data)
            # The memory may be used again at once.
            memory[start : start + 700] = 0
        assert staged.finish() == checksum
    assert isinstance(first, Storage)
    assert (first.size("a/b"), first.modified("a/b")) == (None, None)
    assert list(second.staged()) == [("a/b", first.token)]
    # Any process may publish what another one has staged.
    assert second.publish("a/b", first.token)
    assert not second.publish("a/b", first.token)
    assert server.keys("run.zarr/") == {"a/b": data}
    assert (first.get("a/b"), first.size("a/b"), first.checksum("a/b")) == (data, size, checksum)
    assert first.get_range("a/b", 1, 5) == data[1:6]
    assert first.get_range("a/b", size, 5) == first.get_range("a/b", 0, 0) == b""
    assert first.put("c", [data[:1], data[1:]]) == checksum
    assert list(named(first, "a", "b")) == ["a/b"]
    assert sorted(first.list()) == ["a/b", "c"]
    first.delete("c")
    first.delete("c")
    with pytest.raises(FileNotFoundError):
        first.get("c")


def test_only_one_of_several_writers_puts_an_object_that_was_absent(server: Server) -> None:
    writers = [storage() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda writer: writer.put_if_absent("claim", writer.token.encode()), writers))
    assert won.count(True) == 1
    assert writers[0].get("claim").decode() == writers[won.index(True)].token


FAULTS: tuple[tuple[str, Fault], ...] = (
    *(("create", fault) for fault in ("busy", "lost", "cut", 0.02)),
    *(("complete", fault) for fault in ("busy", "lost", "half")),
    *((kind, "lost") for kind in ("put", "begin", "part", "copy", "delete")),
    *((kind, "half") for kind in ("begin", "get", "list")),
    *((kind, "cut") for kind in ("part", "head")),
)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_an_operation_succeeds_although_a_request_fails(
    kind: str, fault: Fault, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_upload, "WAIT_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(object_store, "WAIT_SECONDS", (0.01, 0.01))
    one, data = storage(), bytes(range(256)) * 10
    once(server, kind, fault)
    with one.stage("large") as staged:
        staged.write(data)
        staged.finish()
    # A put that succeeded is recognised by its content, which no other writer has.
    assert one.put_if_absent("claim", one.token.encode())
    assert one.put("small", [b"x"]) == (1, google_crc32c.value(b"x"))
    assert one.publish("large", one.token)
    assert one.get("large") == data
    assert one.size("large") == len(data)
    assert sorted(one.list()) == ["claim", "large", "small"]
    assert sum(server.faults.injected.values()) == 1


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("abort", ["half", "denied"])
def test_an_upload_that_succeeded_counts_although_its_answer_was_cut_and_its_abort_fails(
    abort: str, server: Server
) -> None:
    one, data = storage(), bytes(range(256)) * 10
    server.faults.fault = lambda request: {"complete": "half", "abort": abort}.get(request.kind)
    with one.stage("large") as staged:
        staged.write(data)
        assert staged.finish() == (len(data), google_crc32c.value(data))
    assert server.faults.counted["abort"] == 1
    assert one.publish("large", one.token)
    assert server.keys("run.zarr/") == {"large": data}


@pytest.mark.usefixtures("small_parts")
def test_a_clean_up_that_the_server_refuses_fails_no_run(server: Server) -> None:
    one, dead = storage(), storage()
    dead.stage("old").write(bytes(2 * PART))
    with one.stage("a") as staged:
        staged.write(bytes(2 * PART))
        staged.finish()
    server.faults.fault = lambda request: "denied" if request.kind in ("delete", "abort") else None
    assert one.publish("a", one.token)
    one.discard("a", one.token)
    server.faults.ahead = 3700
    storage().remove_abandoned()
    server.faults.fault = lambda request: "half" if request.kind == "uploads" else None
    storage().remove_abandoned()
    assert set(server.keys("run.zarr/")) == {"a"}
    assert len(server.uploads()) == 1
    # Whoever is asked later deletes the rest.
    server.faults.fault = lambda request: None
    storage().remove_abandoned()
    assert not server.uploads()


def test_memory_of_parts_is_used_again_only_after_they_are_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch, small_parts: None
) -> None:
    free: deque[np.ndarray] = deque()
    monkeypatch.setattr(staged_upload, "_free", free)
    one, arrives = storage(), threading.Event()
    server.faults.fault = lambda request: arrives if request.kind == "part" else None
    data = np.random.default_rng(0).bytes(3 * PART)
    with one.stage("a") as staged:
        # The first two are on their way to a server that does not read them yet.
        staged.write(data)
        assert not free
        arrives.set()
        staged.finish()
    del staged
    assert len({id(part) for part in free}) == 3
    with one.stage("b") as staged:
        staged.write(data[::-1])
        staged.finish()
    assert server.keys("run.zarr/records/staged/") == {f"{one.token}/a": data, f"{one.token}/b": data[::-1]}
    assert len({id(part) for part in free}) <= 4


@pytest.mark.usefixtures("small_parts")
def test_a_writer_waits_for_a_slow_server_so_that_only_some_parts_of_a_shard_are_in_memory(server: Server) -> None:
    arrives, written, count = threading.Event(), threading.Semaphore(0), 20
    server.faults.fault = lambda request: arrives if request.kind == "part" else None
    data = np.random.default_rng(0).bytes(count * PART)

    def write() -> None:
        with storage().stage("a") as staged:
            for start in range(0, len(data), PART):
                staged.write(data[start : start + PART])
                written.release()
            staged.finish()

    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(write)
        taken = 0
        while written.acquire(timeout=60.0 if taken < SENT_AT_ONCE else 1.0):
            taken += 1
        arrives.set()
        done.result()
    # Those that are on their way, the one that waits for its turn, and the one that is being filled.
    assert SENT_AT_ONCE <= taken <= SENT_AT_ONCE + 2
    assert [*server.keys("run.zarr/").values()] == [data]


@pytest.mark.usefixtures("small_parts")
def test_an_interrupted_or_failed_upload_leaves_nothing(server: Server) -> None:
    one = storage()

    def interrupted() -> None:
        with one.stage("a") as staged:
            staged.write(bytes(3 * PART))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    staged = one.stage("b")
    staged.write(bytes(3 * PART))
    staged.close()
    server.faults.fault = lambda request: "denied" if request.kind == "complete" else None
    staged = one.stage("c")
    staged.write(bytes(3 * PART))
    with pytest.raises(StoreError, match=r"run\.zarr/c: cannot be written \(the server refuses: AccessDenied"):
        staged.finish()
    assert server.keys() == {}


@pytest.mark.usefixtures("small_parts")
def test_left_overs_are_removed_an_hour_later_by_the_clock_of_the_server(server: Server) -> None:
    dead, living, other = storage(), storage(), storage()
    for writer in (dead, living):
        with writer.stage("a") as staged:
            staged.finish()
        # A process that is killed ends no upload.
        writer.stage("b").write(bytes(2 * PART))
    uploads = server.uploads()
    assert len(uploads) == 2
    server.faults.ahead = 3500
    other.remove_abandoned()
    assert len(list(other.staged())) == len(server.uploads()) == 2
    # Asked again by a process that begins now; this computer's clock has not moved.
    server.faults.ahead = 3700
    storage().remove_abandoned([living.token])
    assert list(other.staged()) == [("a", living.token)]
    assert server.uploads() == [f"run.zarr/records/staged/{living.token}/b"]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("fault", ["busy", "cut", "half"])
def test_left_over_uploads_are_removed_although_some_answers_fail(server: Server, fault: str) -> None:
    storage().stage("a").write(bytes(2 * PART))
    assert len(server.uploads()) == 1
    server.faults.ahead = 3700
    failed: set[str] = set()

    def once(request: Request) -> str | None:
        if request.kind not in ("uploads", "abort") or request.kind in failed:
            return None
        failed.add(request.kind)
        return fault

    server.faults.fault = once
    storage().remove_abandoned()
    assert failed == {"uploads", "abort"}
    assert not server.uploads()


def fill(store: StoreWriter, times: int = 1) -> list[bool]:
    """Write and commit every unit; returns for each whether this writer committed it."""
    committed = []
    for unit in store.units:
        rows = np.arange(unit.first_row, unit.first_row + unit.rows)
        with store.begin(unit) as writer:
            writer.put(rows, np.ones(len(rows), bool), numbers(rows) if times == 1 else twice(rows))
            committed.append(writer.commit(moments(), []) is not None)
    return committed


def twice(rows: np.ndarray) -> dict[str, np.ndarray]:
    """What another writer computes: other numbers, to see whose are stored."""
    return {name: 2 * values for name, values in numbers(rows).items()}


def same_as_on_disk(server: Server, tmp_path: Path) -> bool:
    local = new_store(tmp_path / "run.zarr")
    store = StoreWriter(local)
    fill(store)
    store.finish()
    return server.keys("run.zarr/") == relative_files(local)


def test_a_store_in_a_bucket_has_the_bytes_of_one_on_disk(server: Server, tmp_path: Path) -> None:
    store = StoreWriter(new_store(url()))
    assert all(fill(store))
    store.finish()
    assert same_as_on_disk(server, tmp_path)


def test_the_size_of_a_large_store_is_told_without_listing_its_shards(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(StoreWriter(new_store(url())))
    wanted = sum(map(len, server.keys("run.zarr/").values()))
    left_out: list[list[str]] = []
    listed = ObjectStorage.listed

    def noted(self: ObjectStorage, folder: str = "", without: Collection[str] = ()) -> list[dict[str, Any]]:
        found = listed(self, folder, without)
        left_out.append([*without])
        assert not [each for each in found if each["path"].startswith(tuple(f"{one}/" for one in without))]
        return found

    monkeypatch.setattr(ObjectStorage, "listed", noted)
    for least in (1000, 1):
        monkeypatch.setattr(ranged, "_LISTED_AT_ONCE", least)
        store = hs.open(url())
        assert store.contents.records
        server.faults.counted.clear()
        left_out.clear()
        assert store.stored_bytes == wanted
        assert server.faults.counted["list"] == len(left_out[0]) + 1
    assert "heads/c" in left_out[0]


def test_two_planners_leave_one_plan(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Here and not by each thread, since the one that ends last would put back what the other one had set.
    monkeypatch.setattr(schema, "_SHARD_BYTES", SHARD_BYTES)
    with ThreadPoolExecutor(2) as threads:
        assert any(threads.map(lambda _: planned_here(url()), range(2)))
    assert server.keys("run.zarr/") == relative_files(new_store(tmp_path / "run.zarr"))


@pytest.mark.parametrize("lost", [pytest.param(False, marks=pytest.mark.full_size), True])
def test_the_claim_of_a_dead_planner_is_finished_or_removed(
    lost: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle = plan_claim.settle_plan
    monkeypatch.setattr(plan_claim, "settle_plan", lambda storage: True)
    new_store(url(), may_exist=True)
    monkeypatch.setattr(plan_claim, "settle_plan", settle)
    other = storage()
    [(_, token)] = {("", token) for _, token in other.staged()}
    assert other.size("zarr.json") is None
    if lost:
        other.discard("records/shards.parquet", token)
    assert settle(other) is not lost
    wanted = {} if lost else relative_files(new_store(tmp_path / "run.zarr"))
    assert server.keys("run.zarr/") == wanted


def test_two_writers_leave_one_content_in_a_bucket(server: Server, tmp_path: Path) -> None:
    new_store(url())
    first, second = StoreWriter(url()), StoreWriter(url())
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(fill, (first, second), (1, 2))
    assert [a != b for a, b in zip(one, two, strict=True)] == [True] * len(first.units)
    first.finish()
    found = hs.open(url())
    for unit, mine in zip(first.units, one, strict=True):
        rows = np.arange(unit.first_row, unit.first_row + unit.rows)
        wanted = numbers(rows) if mine else twice(rows)
        assert np.array_equal(found.norm[rows], wanted["norm"])
        assert np.array_equal(found.contents.values("embedding")[rows], wanted["embedding"])
    assert not list(first.storage.staged())


@pytest.mark.parametrize(
    "kind", ["create", *(pytest.param(kind, marks=pytest.mark.full_size) for kind in ("copy", "put"))]
)
def test_a_request_that_arrives_after_its_writer_was_declared_dead_changes_nothing(
    kind: str, server: Server, tmp_path: Path
) -> None:
    new_store(url())
    late, store = StoreWriter(url()), StoreWriter(url())
    arrives, held = threading.Event(), threading.Event()

    def hold(request: Request) -> Fault:
        mine = request.kind == kind and ("unit-00000000" in request.key or "/c/0" in request.key)
        if mine and not held.is_set() and threading.current_thread() is not main:
            held.set()
            return arrives
        return None

    main = threading.current_thread()
    server.faults.fault = hold
    begun = threading.Thread(target=lambda: fill_first(late))
    begun.start()
    assert held.wait(30)
    server.faults.fault = lambda request: None
    # Declared dead: what it staged is deleted, unless it has claimed the unit, which is then finished.
    store.drop_staged(store.units[0], late.token) if kind != "copy" else store.commits.settle_all()
    fill(store)
    store.finish()
    before = server.keys("run.zarr/")
    arrives.set()
    begun.join(30)
    assert not begun.is_alive()
    store.commits.settle_all()
    for key, token in list(store.storage.staged()):
        store.storage.discard(key, token)
    assert server.keys("run.zarr/") == before
    assert same_as_on_disk(server, tmp_path)


def fill_first(store: StoreWriter) -> None:
    unit = store.units[0]
    rows = np.arange(unit.first_row, unit.first_row + unit.rows)
    with store.begin(unit) as writer:
        writer.put(rows, np.ones(len(rows), bool), numbers(rows))
        writer.commit(moments(), [])


def test_two_processes_that_save_one_name_leave_the_result_of_one_of_them(server: Server) -> None:
    fill(StoreWriter(new_store(url())))
    arrays = [{"a": (np.full(5, value), ("x",)), "b": (np.full(3, value), ("y",))} for value in (1.0, 2.0)]
    waits, goes_on = threading.Event(), threading.Event()

    def hold(request: Request) -> Fault:
        # The first process has copied some of its files.
        if request.kind == "copy" and "/labels/x/" in request.key and waits.is_set() is False:
            waits.set()
            return goes_on
        return None

    server.faults.fault = hold
    with ThreadPoolExecutor(1) as other:
        first = other.submit(save, hs.open(url()), "labels", "x", arrays[0], {"number": 1})
        while not waits.wait(0.1):
            assert not first.done()
        with pytest.raises(StoreError, match=r"labels/x: another process is writing this run; .* again in 10 min$"):
            save(hs.open(url()), "labels", "x", arrays[1], {"number": 2})
        goes_on.set()
        first.result()
    found, settings = results.load(hs.open(url()), "labels", "x")
    assert settings == {"number": 1}
    assert {name: set(values) for name, values in found.items()} == {"a": {1.0}, "b": {1.0}}
    assert not [key for key in server.keys("run.zarr/") if "claim" in key or "/." in key]


def test_the_claim_of_a_killed_process_on_a_result_ends_after_ten_minutes(server: Server) -> None:
    fill(StoreWriter(new_store(url())))
    values = {"a": (np.arange(5.0), ("x",))}
    storage().put_if_absent("records/results/labels/x.claim-3", b"killed")
    server.faults.ahead = 500
    with pytest.raises(StoreError, match=r"if that process was killed, run this one again in 2 min$"):
        save(hs.open(url()), "labels", "x", values, {})
    server.faults.ahead = 700
    save(hs.open(url()), "labels", "x", values, {})
    remove(hs.open(url()), "labels", "x")
    assert not [key for key in server.keys("run.zarr/") if "labels/x" in key]


def denied(server: Server) -> None:
    server.faults.fault = lambda request: "denied"


def without_conditions(server: Server) -> None:
    server.faults.conditional = False


REFUSALS: dict[str, tuple[str, Callable[[Server], None], str]] = {
    "no rights": (f"s3://{BUCKET}/run.zarr", denied, r"cannot be written \(the server refuses: AccessDenied: .*check"),
    "no bucket": ("s3://nowhere/run.zarr", lambda server: None, r"there is no bucket nowhere at http://127\.0\.0\.1"),
    "no conditions": (f"s3://{BUCKET}/run.zarr", without_conditions, r"does not put objects on condition \(If-None-M"),
    "no folder": (f"s3://{BUCKET}", lambda server: None, r"names no folder in a bucket; write s3://bucket/run.zarr"),
    "a password": (f"s3://me:{SECRET}@{BUCKET}/run.zarr", lambda server: None, r"holds no user, password or query"),
    "no account": (f"r2://{BUCKET}/run.zarr", lambda server: None, r"set R2_ACCOUNT_ID or AWS_ENDPOINT_URL"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_bucket_that_cannot_be_used_is_refused_in_one_sentence(
    what: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, prepare, sentence = REFUSALS[what]
    prepare(server)
    if what == "no account":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(HeadspanError, match=sentence) as refused, begun_plan(StoreURL(address), {}, 1, MemberNames()):
        pass
    text = str(refused.value)
    assert "\n" not in text
    assert KEY_ID not in text
    assert SECRET not in text
    assert server.keys() == {}


def test_a_server_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("headspan.io.buckets._RETRY", {"max_retries": 0})
    monkeypatch.setattr(object_store, "WAIT_SECONDS", (0.0,))
    with pytest.raises(StoreError, match=r"the server http://127.0.0.1:9 cannot be reached .*; check the endpoint"):
        storage().size("a")


def test_no_credentials_are_refused_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match=r"no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        client("s3://bucket/run.zarr")
    profile = tmp_path / "credentials"
    profile.write_text("[named]\naws_access_key_id = AKIA1\naws_secret_access_key = kept\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    monkeypatch.setenv("AWS_PROFILE", "named")
    found = client("s3://bucket/run.zarr")
    assert found.credential_provider()["access_key_id"] == "AKIA1"


def test_providers_have_their_own_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("R2_ACCOUNT_ID", "acc")
    assert endpoint("s3://b/x") == "https://s3.eu-west-1.amazonaws.com"
    assert endpoint("r2://b/x") == "https://acc.r2.cloudflarestorage.com"
    assert endpoint("gs://b/x") == "https://storage.googleapis.com"
    assert endpoint("az://acc/b/x") == "https://acc.blob.core.windows.net"
