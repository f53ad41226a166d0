"""Stores in buckets read as in folders: values, tables, results, commands, pages and refusals; and what that requests.

Local folders stand for buckets and count the requests; one test reads through moto's S3 server.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

import headspan as hs
from benchmarks.counted_reads import BUCKET, CountingStorage, Requests, table
from headspan.cli.main import main
from headspan.errors import HeadspanError
from headspan.io import sparse_files
from headspan.io.disk_blocks import DiskBlocks
from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage
from headspan.io.ranged import RangedStorage
from headspan.io.sparse_files import FilesInMemory, SparseFiles
from headspan.store import ranged_rows, results, tables
from headspan.store.kept_samples import KeptSamples
from headspan.store.mapped import MappedRows
from headspan.store.ranged_rows import RangedRows
from headspan.web.app import application
from headspan.web.state.explorer import Explorer
from headspan.web.state.kept_on_disk import opened_with_cache
from headspan.web.state.open_stores import OpenStores
from headspan.web.state.uploads import Uploads
from tests.conftest import ToyRun
from tests.engine.model_in_process import InProcess
from tests.engine.test_mapped import PIECES, SPEC
from tests.engine.test_other_libraries import analysed  # noqa: F401  (a fixture)
from tests.engine.test_shard_writer import random_values, write_all


def folder_as_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Requests:
    """Let `s3://bucket/NAME` be the folder NAME in `folder`. Returns the requests that are made from now on."""
    requests = Requests()
    monkeypatch.setattr("headspan.io.object_store.ObjectStorage", lambda url: CountingStorage(url, folder, requests))
    return requests


def printed_in_bucket(words: Sequence[str], path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints about the store at `path` as if it were in a bucket, with the path for its address."""
    url = f"{BUCKET}/{path.name}"
    with pytest.MonkeyPatch.context() as patched:
        folder_as_bucket(path.parent, patched)
        assert main([word.replace(str(path), url) for word in words]) == 0
    return capsys.readouterr().out.replace(url, str(path))


@pytest.fixture
def both(analysed: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, Requests]:  # noqa: F811
    """An analysed store: its folder, its address as if it were in a bucket, and the requests."""
    requests = folder_as_bucket(analysed.parent, monkeypatch)
    return analysed, f"{BUCKET}/{analysed.name}", requests


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and requests so small that tests need many of them."""
    for name, size in {"BLOCK_BYTES": 64, "_GAP_BYTES": 128, "_REQUEST_BYTES": 512, "_WHOLE_BYTES": 0}.items():
        monkeypatch.setattr(sparse_files, name, size)
    monkeypatch.setattr(ranged_rows, "_AHEAD_BYTES", 2048)


QUESTIONS: dict[str, Callable[[hs.Store], Any]] = {
    "rows": lambda store: store.rows,
    "head": lambda store: store.head(1, 1),
    "layers": lambda store: store.heads([2, 0], "per_term", False),
    "float16": lambda store: store.head_coordinates(2, 0, np.float16),
    "embedding": lambda store: store.embedding,
    "norm": lambda store: store.norm,
    "patches": lambda store: store.patches(7, 1),
    "all patches": lambda store: store.patch_coordinates(-1),
    "mlps": lambda store: store.mlps(),
    "moments": lambda store: store.moments().sha256,
    "moments of some": lambda store: store.moments([3, 1, 50]).sha256,
    "embedding moments": lambda store: store.embedding_moments().gram,
    "magnitudes": lambda store: store.magnitudes(True).covariance_share,
    "samples": lambda store: store.samples().to_pylist(),
    "some samples": lambda store: store.samples([60, 2, 2], ["key", "offset"]).to_pylist(),
    "key": lambda store: store.image_of_key(store.samples([20], ["key"])["key"][0].as_py()),
    "selection": lambda store: store.select(keys=store.samples([9, 4], ["key"])["key"].to_pylist()).rows,
    "shards": lambda store: store.shards(),
    "bad": lambda store: (store.bad_images(), store.notes(), store.quarantined_units(), store.complete),
    "xarray": lambda store: store.to_xarray()["heads"][[8, 3], 1].values,
    "bytes": lambda store: store.stored_bytes,
    "info": lambda store: repr(hs.info(store)).replace(f"{store.path}", "the store"),
    "runs": lambda store: hs.runs(store).runs,
    "spans": lambda store: hs.spans.read_spans(store, "some").texts(2, 1),
    "run": lambda store: results.load(store, "textspan", "every"),
    "missing run": lambda store: _error(lambda: results.load(store, "ccs", "none")).replace(f"{store.path}", ""),
    "lineage": lambda store: hs.spans.read_spans(store, "every").lineage,
}


def _error(call: Callable[[], Any]) -> str:
    """The sentence of a refusal."""
    with pytest.raises(HeadspanError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("include_failed", [False, True])
def test_every_question_has_the_same_answer_in_a_bucket(both: tuple[Path, str, Requests], include_failed: bool) -> None:
    folder, url, _ = both
    local, bucket = hs.open(folder, include_failed), hs.open(url, include_failed)
    assert str(bucket.path) == url
    for question in QUESTIONS.values() if not include_failed else map(QUESTIONS.get, ("rows", "head", "xarray")):
        assert question is not None
        np.testing.assert_equal(question(bucket), question(local))


COMMANDS = (
    "info STORE",
    "info STORE --heads",
    "info STORE --bad",
    "info STORE --watch",
    "runs STORE",
    "verify STORE",
    "nearest STORE --image 3",
    "nearest STORE --image 3 --head L1.H0 --csv -",
    "export STORE --to OUT.parquet",
    pytest.param("report STORE --out OUT.html --run every", marks=pytest.mark.full_size),
    "explore STORE --port -1",
    "nearest STORE/none --image 3",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_and_writes_the_same(
    command: str, both: tuple[Path, str, Requests], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, url, _ = both

    def run(store: str, out: str) -> tuple[int, str, list[bytes]]:
        words = [word.replace("STORE", store).replace("OUT", str(tmp_path / out)) for word in command.split()]
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        # Progress tells how fast it was.
        text = (
            (printed.err if code else printed.out).replace(store, "the store").replace(str(tmp_path / out), "the file")
        )
        files = [path.read_bytes() for path in sorted(tmp_path.glob(f"{out}*"))]
        return code, text.replace("no such folder", "holds no files"), files

    one, other = run(str(folder), "one"), run(url, "other")
    assert one[:2] == other[:2]
    assert len(one[2]) == len(other[2]) == ("OUT" in command)
    if "parquet" in command:
        assert one[2] == other[2]
    elif one[2]:
        # The report says where the store is.
        assert abs(len(one[2][0]) - len(other[2][0])) < 1000


def test_opening_takes_four_requests_and_numbers_take_one_for_each_small_shard(
    both: tuple[Path, str, Requests],
) -> None:
    _, url, requests = both
    store = hs.open(url)
    assert Counter(kind for kind, *_ in requests) == {"get": 2, "list": 2}
    units = len(store.contents.records)
    assert units == 3
    requests.clear()
    first = store.head(1, 0)
    # The shards of `heads` and `norm`, and the model's matrices.
    assert 2 * units < len(requests) <= 2 * units + 8
    assert {kind for kind, *_ in requests} == {"range"}
    requests.clear()
    np.testing.assert_array_equal(store.head(1, 0), first)
    store.head(2, 1)
    assert not requests
    store.samples([3, 4])
    # The size of the table, its end, and a row group, which are one request in a small file.
    assert Counter(kind for kind, *_ in requests) == {"head": 1, "range": 1}
    requests.clear()
    hs.info(url)
    # Among them, a listing for each of seven kinds of results.
    assert len(requests) <= 18
    requests.clear()
    results.load(store, "textspan", "every")
    assert max(Counter(requests).values()) == 1, "no file of a run is read twice"


def test_the_table_of_requests_counts_every_command(analysed: Path) -> None:  # noqa: F811
    lines = table(analysed, ["info STORE", "runs STORE"]).split("\n")
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| `info STORE`", "| `runs STORE`"]
    assert lines[2] == "| `hs.open` | 4 | 2 | 0.1 |"


@pytest.mark.parametrize("spec", [SPEC, PIECES], ids=["chunks of two heads", "chunks of one head"])
def test_ranges_of_shards_hold_the_numbers_of_maps(
    spec: Any, small_blocks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_all(tmp_path / "a.zarr", spec, random_values(spec.shape, spec.dtype))
    # The second shard is missing.
    (tmp_path / "a.zarr" / spec.file(spec.shard[0])).unlink()
    requests = folder_as_bucket(tmp_path, monkeypatch)
    mapped = MappedRows(tmp_path / "a.zarr", spec)

    def ranged() -> RangedRows:
        from headspan.io.stores import storage_at

        return RangedRows(RangedStorage(storage_at(f"{BUCKET}/a.zarr")), spec)

    for index in ((), (2,), (2, 1)):
        np.testing.assert_array_equal(ranged().read(index), mapped.read(index))
        for row in (0, 5, spec.shape[0] - 1):
            np.testing.assert_array_equal(ranged().row(row, index, np.float32), mapped.row(row, index, np.float32))
        rows = ranged()
        rows.expect([index], spec.chunk[0], spec.shape[0])
        for one, other in zip(rows.chunks(index, spec.chunk[0]), mapped.chunks(index, spec.chunk[0]), strict=True):
            np.testing.assert_array_equal(one, other)
    if spec is PIECES:
        for rows_taken in (np.arange(150), np.array([149, 3, 3, 70]), np.arange(0)):
            out = np.empty((2, len(rows_taken), 3, *mapped.whole), np.float32)
            for each, target in zip((ranged(), mapped), out, strict=True):
                each.take(rows_taken, np.array([7, 2, 3]), target)
            np.testing.assert_array_equal(*out)
        copied = np.empty((2, 12, 40), mapped.piece)
        for each, target in zip((ranged(), mapped), copied, strict=True):
            each.copy_pieces(np.arange(50, 90), np.arange(12), target)
        assert copied[0].tobytes() == copied[1].tobytes()
        requests.clear()
        # A single row of one head: a piece of 10 bytes, and the index of the shard.
        ranged().row(40, (1, 2))
        assert sum(size for *_, size in requests) <= 64 + len(ranged_rows._index(spec, 2)) + 3 * 64


class _Bytes(PassingStorage):
    """Random bytes that are read by ranges."""

    def __init__(self, size: int) -> None:
        super().__init__(LocalStorage(Path()))
        self.content, self.requests, self.together = random.Random(0).randbytes(size), 0, 0

    def get_range(self, key: str, start: int, size: int) -> bytes:
        self.requests += 1
        return self.content[start : start + size]


def test_parts_of_files_stay_within_the_bounds_of_memory_and_disk(small_blocks: None, tmp_path: Path) -> None:
    storage, memory = _Bytes(200_000), FilesInMemory(6_000)
    files = SparseFiles(storage, memory)
    # The size on disk is counted in the system's pages.
    files.disk, files.content_of = DiskBlocks(tmp_path, 600_000, 64), lambda key: f"content-{key}"
    wrong: list[str] = []

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            key, start = f"{chance.randrange(9)}", chance.randrange(199_000)
            end = start + chance.randrange(1, 900)
            if files.read(key, 200_000, [(start, end)])[start:end].tobytes() != storage.content[start:end]:
                wrong.append(key)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert memory.bytes <= 6_000
    assert 0 < files.disk.bytes <= 600_000
    # Two processes may share the folder.
    other, before = DiskBlocks(tmp_path, 600_000, 64), storage.requests
    again = SparseFiles(storage, FilesInMemory())
    again.disk, again.content_of = other, files.content_of
    start, end = 1_000, 3_000
    files.read("last", 200_000, [(start, end)])
    assert storage.requests > before
    before = storage.requests
    assert again.read("last", 200_000, [(start, end)])[start:end].tobytes() == storage.content[start:end]
    assert storage.requests == before, "read from disk"
    path = tmp_path / "content-last.blocks"
    damaged = bytearray(path.read_bytes())
    damaged[-200_000 + 1_500] ^= 1
    path.write_bytes(damaged)
    third = SparseFiles(storage, FilesInMemory())
    third.disk, third.content_of = other, files.content_of
    assert third.read("last", 200_000, [(start, end)])[start:end].tobytes() == storage.content[start:end]
    assert storage.requests == before + 1, "only the damaged block is fetched"
    small = DiskBlocks(tmp_path, 50_000, 64)
    small.write("new", 640, 0, bytes(640))
    assert small.bytes <= 50_000


def test_a_table_is_read_by_its_columns_and_its_end_once(
    toy_run: ToyRun, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_as_bucket(toy_run.path.parent, monkeypatch)
    store, local = hs.open(f"{BUCKET}/{toy_run.path.name}"), toy_run.path
    storage, units = store.contents.storage, store.contents.units
    assert tables.read_table(storage, units).equals(tables.read_table(local, units))
    for name in ("key", "url"):
        found = pa.Table.from_batches(tables.scan_samples(storage, units, [name]))
        assert found[name].to_pylist() == tables.read_table(local, units, [name])[name].to_pylist()
    keys = tables.read_table(local, units, ["key"])["key"].to_pylist()
    assert list(tables.rows_of_keys(storage, units, keys[30:32])) == [(30, keys[30]), (31, keys[31])]
    assert tables.filled_columns(storage, units) == tables.filled_columns(local, units)
    kept = KeptSamples(storage, store.contents.size.unit_images, 1 << 20)
    assert kept.rows(np.array([40, 2]), ["key"])["key"].to_pylist() == [keys[40], keys[2]]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "question"),
    [
        (lambda store: (store / "zarr.json").unlink(), "rows"),
        (lambda store: (store / "zarr.json").write_text("{"), "rows"),
        (lambda store: (store / "records/commits/group-000000.json").write_text("[{"), "rows"),
        (lambda store: _cut(store / "heads/c/2/0/0/0"), "head"),
        (lambda store: (store / "embedding/c/0/0").unlink(), "embedding"),
        (lambda store: _cut(store / "records/samples/00000.parquet"), "samples"),
        (lambda store: (store / "records/shards.parquet").unlink(), "shards"),
        (lambda store: (store / "textspan/every/indices/zarr.json").write_text("{}"), "run"),
        (lambda store: shutil.rmtree(store / "textspan/every/indices"), "run"),
        (lambda store: _cut(store / "moments/gram/c/0/0/0/0"), "moments"),
    ],
)
def test_damage_is_refused_with_the_same_sentence(
    damage: Callable[[Path], None],
    question: str,
    analysed: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Path(shutil.copytree(analysed, tmp_path / "s.zarr"))
    folder_as_bucket(tmp_path, monkeypatch)
    damage(store)

    def answer(path: str | Path) -> Any:
        try:
            return QUESTIONS[question](hs.open(path))
        except HeadspanError as error:
            # What reads the table words it in its own way.
            words = str(error).replace(f"{path}", "")
            return type(error), words.partition("damaged (")[0]

    one = answer(store)
    np.testing.assert_equal(answer(f"{BUCKET}/s.zarr"), one)
    assert question == "embedding" or isinstance(one, tuple), "it was refused"


def test_pages_show_the_same_and_read_again_from_disk(
    analysed: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "buckets"
    shutil.copytree(analysed, folder / "s.zarr")
    requests, url = folder_as_bucket(folder, monkeypatch), f"{BUCKET}/s.zarr"

    def client(path: str | Path, cache_bytes: int = 0) -> TestClient:
        return TestClient(application(Explorer(OpenStores([path], cache_bytes), InProcess(), Uploads())))

    local, bucket = client(folder / "s.zarr"), client(url, 1 << 26)
    for page in ("images/3", "heads/L1.H0", "heads/L1.H0/extremes", "grid", "facets", "images?sort=key", "images"):
        one, other = (each.get(f"/api/stores/s/{page}") for each in (local, bucket))
        assert one.status_code == 200
        assert other.content.replace(url.encode(), b"") == one.content.replace(str(folder / "s.zarr").encode(), b"")
    requests.clear()
    store = opened_with_cache(url, 1 << 26)
    store.head(1, 0)
    assert not [key for kind, key, _ in requests if kind == "range" and key.startswith(("heads/", "norm/"))]
    # A store that was replaced has other checksums, and its numbers are not those on disk.
    record = folder / "s.zarr" / "records/commits/group-000000.json"
    record.write_text(record.read_text().replace('"heads/c/0/0/0/0": [', '"heads/c/0/0/0/0": [1'))
    requests.clear()
    opened_with_cache(url, 1 << 26).head(1, 0)
    assert [key for kind, key, _ in requests if key.startswith("heads/")] == ["heads/c/0/0/0/0"]
    assert "is named twice" in _error(lambda: OpenStores([url, f"{url}/"]))


@pytest.mark.full_size
def test_a_store_on_an_s3_server_is_read(analysed: Path) -> None:  # noqa: F811
    pytest.importorskip("moto")
    from headspan.io.object_store import ObjectStorage
    from tests.s3_server import SECRET, serving

    with serving() as server:
        url = f"{BUCKET}/folder/s.zarr"
        there, here = ObjectStorage(url), LocalStorage(analysed)
        for key in here.list():
            there.put_if_absent(key, here.get(key))
        server.faults.counted.clear()
        store, local = hs.open(url), hs.open(analysed)
        for name in ("head", "patches", "samples", "moments", "run", "spans", "key", "shards"):
            np.testing.assert_equal(QUESTIONS[name](store), QUESTIONS[name](local))
        missing = _error(lambda: hs.open(f"{BUCKET}/folder/none.zarr"))
        assert (
            missing
            == f"{BUCKET}/folder/none.zarr: holds no files; give the path that `headspan precompute --out` wrote"
        )
        assert SECRET not in f"{store!r}{store.path}{missing}"
