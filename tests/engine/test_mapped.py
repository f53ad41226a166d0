"""Read, convert and multiply shards through memory maps; shards that cannot be mapped are read by Zarr."""

from __future__ import annotations

import gc
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from resource import RLIMIT_NOFILE, getrlimit, setrlimit

import google_crc32c
import numpy as np
import pytest
import zarr

import headspan as hs
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress
from headspan.explore.nearest.similarities import similarities
from headspan.store import mapped, products, schema, shard_rows
from headspan.store.contents import Contents
from headspan.store.head_space import coordinate_products
from headspan.store.mapped import MappedRows, UnmappableError
from tests import tolerances
from tests.conftest import ToyRun, zarr_array
from tests.engine.test_shard_writer import random_values, spec_of, write_all
from tests.tolerances import relative_error

WITHOUT_NUMKONG = """
import sys
sys.modules["numkong"] = None
import numpy as np, headspan as hs
from headspan.explore.nearest.similarities import similarities
store = hs.open(sys.argv[1])
query = np.linspace(-1, 1, store.joint, dtype=np.float32)[None]
np.savez(sys.argv[2], heads=store.head(1, 2), half=store.head_coordinates(1, 2, np.float16),
         similar=similarities(store, query, [(1, 2), (2, 0)]))
"""


def test_without_numkong_the_same_numbers_are_read_and_multiplied(toy_store: hs.Store, tmp_path: Path) -> None:
    saved = tmp_path / "found.npz"
    subprocess.run([sys.executable, "-c", WITHOUT_NUMKONG, str(toy_store.path), str(saved)], check=True)
    found = np.load(saved)
    query = np.linspace(-1, 1, toy_store.joint, dtype=np.float32)[None]
    np.testing.assert_array_equal(found["half"], toy_store.head_coordinates(1, 2, np.float16))
    np.testing.assert_array_equal(found["heads"], toy_store.head(1, 2))
    similar = similarities(toy_store, query, [(1, 2), (2, 0)])
    np.testing.assert_allclose(found["similar"], similar, rtol=1e-4, atol=1e-6)


def test_every_float16_number_converts_to_the_equal_float32_number(tmp_path: Path) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 8, 64)
    spec = spec_of(every.shape, every.shape, (1, 2, 64), "float16")
    write_all(tmp_path, spec, every)
    wanted = every.astype(np.float32)
    for found in (MappedRows(tmp_path, spec).read(dtype=np.float32), MappedRows(tmp_path, spec).read()):
        np.testing.assert_array_equal(found, wanted)
        assert (np.signbit(found) == np.signbit(wanted)).all()
    found = np.stack([MappedRows(tmp_path, spec).row(row, (3,), np.float32) for row in range(len(every))])
    np.testing.assert_array_equal(found, wanted[:, 3])


SPEC = spec_of((13, 3, 4, 6, 5), (8, 3, 4, 6, 5), (4, 1, 2, 6, 5), "float16")


def test_an_index_of_the_first_axes_is_read_for_all_rows_or_for_one(tmp_path: Path) -> None:
    values = random_values(SPEC.shape, SPEC.dtype)
    write_all(tmp_path, SPEC, values)
    for index in ((), (2,), (0, 3), (1, 2, 5)):
        place = (slice(None), *index)
        assert (MappedRows(tmp_path, SPEC).read(index) == values[place]).all()
        for row in (0, 7, 8, 12):
            assert (MappedRows(tmp_path, SPEC).row(row, index) == values[(row, *index)]).all()


def test_a_missing_shard_reads_as_nan(tmp_path: Path) -> None:
    values = random_values(SPEC.shape, SPEC.dtype)
    write_all(tmp_path, SPEC, values)
    (tmp_path / SPEC.file(8)).unlink()
    found = MappedRows(tmp_path, SPEC).read()
    assert (found[:8] == values[:8]).all()
    assert np.isnan(found[8:]).all()
    assert np.isnan(MappedRows(tmp_path, SPEC).row(9)).all()


PIECES = spec_of((150, 3, 4, 5), (64, 3, 4, 5), (32, 1, 1, 5), "float16")


@pytest.mark.parametrize("places", [list(range(12)), [7, 2, 3]])
def test_pieces_of_neighbouring_and_of_scattered_rows_are_copied(places: list[int], tmp_path: Path) -> None:
    values = random_values(PIECES.shape, PIECES.dtype)
    write_all(tmp_path, PIECES, values)
    (tmp_path / PIECES.file(128)).unlink()
    values[128:] = np.nan
    wanted = values.reshape(150, 12, 5)[:, places]
    maps = MappedRows(tmp_path, PIECES)
    for rows in (np.arange(150), np.r_[3:90, 131:140], np.arange(1, 150, 4), np.array([149]), np.arange(0)):
        out = np.empty((len(places), len(rows)), maps.piece)
        maps.copy_pieces(rows, np.array(places), out)
        found = out.T.copy().view(np.float16).reshape(len(rows), len(places), 5)
        np.testing.assert_array_equal(found, wanted[rows])


# One row at a time, three, and all.
@pytest.mark.parametrize("taken_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_are_taken_in_any_order_however_many_are_copied_at_once(
    dtype: type, taken_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_rows, "_TAKEN_BYTES", taken_bytes)
    spec = spec_of((40, 3, 5), (16, 3, 5), (4, 1, 5), "float16")
    values = random_values(spec.shape, spec.dtype)
    write_all(tmp_path, spec, values)
    (tmp_path / spec.file(16)).unlink()
    values[16:32] = np.nan
    rows, places = np.array([39, 3, 4, 5, 17, 3, 0, 31, 38, 6, 7]), np.array([2, 0, 1])
    maps = MappedRows(tmp_path, spec)
    for some in (rows, np.sort(rows), np.arange(40), rows[:1]):
        out = np.empty((len(some), len(places), 5), dtype)
        maps.take(some, places, out)
        np.testing.assert_array_equal(out, values[some][:, places].astype(dtype))


def test_a_file_that_was_cut_off_after_it_was_mapped_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, PIECES, random_values(PIECES.shape, PIECES.dtype))
    maps = MappedRows(tmp_path, PIECES)
    maps.read()
    os.truncate(tmp_path / PIECES.file(0), 7_000)
    with pytest.raises(StoreError, match=r"ends before byte 7,\d+; run headspan verify"):
        maps.copy_pieces(np.arange(64), np.arange(12), np.empty((12, 64), maps.piece))


@pytest.mark.parametrize(
    "damaged", [lambda data: b"", lambda data: data[:-1], lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]]
)
def test_a_shard_that_is_cut_off_or_has_a_damaged_index_is_not_mapped(
    damaged: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    write_all(tmp_path, SPEC, random_values(SPEC.shape, SPEC.dtype))
    path = tmp_path / SPEC.file(8)
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(UnmappableError):
        MappedRows(tmp_path, SPEC).read()


def test_a_store_reads_what_zarr_reads(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    for layer in store.layers:
        wanted = np.asarray(zarr_array(store.path, "heads")[...])[store.rows, store.contents.layer_index(layer), 1]
        found = store.head_coordinates(layer, 1, np.float16)
        assert found.dtype == np.float16
        assert (found == wanted).all()
        assert (store.head_coordinates(layer, 1) == wanted.astype(np.float32)).all()
        image = np.asarray(zarr_array(store.path, "patches")[...])[
            store.rows[7], store.contents.layer_index(layer)
        ].swapaxes(0, 1)
        assert (store.patch_coordinates(7, layer, np.float16) == image).all()
        assert (store.patch_coordinates(7, dtype=np.float16)[store.contents.layer_index(layer)] == image).all()
        assert (store.patch_coordinates(7, layer) == image.astype(np.float32)).all()


def test_coordinates_of_other_precisions_are_refused(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    for ask in (store.head_coordinates, store.patch_coordinates):
        with pytest.raises(SettingsError, match="dtype float64 is not supported; choose float32, or float16"):
            ask(1, 1, np.float64)
        with pytest.raises(SettingsError, match="dtype half a number is not supported; choose float32"):
            ask(1, 1, "half a number")


def test_uncommitted_rows_are_nan_in_float16_too(toy_copy: Path) -> None:
    (toy_copy / "records/commits/complete.json").unlink()
    record = toy_copy / "records/commits/group-000000.json"
    record.write_text(json.dumps([unit for unit in json.loads(record.read_text()) if unit["unit"] != 1]))
    store = hs.open(toy_copy, include_failed=True)
    assert np.isnan(store.head_coordinates(0, 0, np.float16)[32:64]).all()
    assert np.isnan(store.patch_coordinates(40, 0, np.float16)).all()
    assert np.isfinite(store.patch_coordinates(4, 0, np.float16)).all()


def exact_products(store: hs.Store, heads: list[tuple[int, int]], matrices: list[np.ndarray]) -> np.ndarray:
    """The products in float64, from coordinates that Zarr reads."""
    total = np.zeros((matrices[0].shape[1], store.images))
    mean, s, length = np.asarray(zarr_array(store.path, "norm")[...])[store.rows].astype(np.float64).T
    for (layer, head), matrix in zip(heads, matrices, strict=True):
        own = np.asarray(zarr_array(store.path, "heads")[...])[
            store.rows, store.contents.layer_index(layer), head
        ].astype(np.float64)
        coordinates = np.column_stack([own / s[:, None], 1 / s, mean / s, np.ones_like(s)]) / length[:, None]
        total += (coordinates @ matrix).T
    return total


@pytest.mark.parametrize("columns", [1, 3, 257])
@pytest.mark.parametrize("heads", [[(1, 1)], [(0, 2), (2, 0), (1, 1)]])
def test_products_with_stored_coordinates_are_exact_to_float32(
    columns: int, heads: list[tuple[int, int]], toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(columns)
    for include_failed in (False, True):
        store = hs.open(toy_run.path, include_failed)
        matrices = [random.standard_normal((store.head_dim + 3, columns)) for _ in heads]
        wanted = exact_products(store, heads, matrices)
        # Blocks of one chunk and of all chunks.
        for block_bytes in (1, 1 << 20):
            monkeypatch.setattr(products, "_BLOCK_BYTES", block_bytes)
            found = coordinate_products(store, heads, matrices)
            assert (np.isnan(found) == np.isnan(wanted)).all()
            good = ~np.isnan(wanted)
            assert good.any()
            assert relative_error(found[good], wanted[good]) < tolerances.FLOAT32_SUM


def test_each_column_of_a_product_has_its_own_scale(toy_run: ToyRun) -> None:
    store = hs.open(toy_run.path)
    columns = np.random.default_rng(0).standard_normal((store.head_dim + 3, 6))
    scales = np.array([1e-30, 1e30, 1.0, 0.0, 1.0, 1.0])
    columns[:, 4], columns[0, 5] = np.nan, np.inf
    # A few numbers far below the others.
    columns[3:7, 2] *= 1e-6
    found = coordinate_products(store, [(1, 0)], [columns * scales])
    wanted = exact_products(store, [(1, 0)], [columns[:, :3]]) * scales[:3, None]
    for column in range(3):
        assert relative_error(found[column], wanted[column]) < tolerances.FLOAT32_SUM
    assert (found[3] == 0).all()
    assert np.isnan(found[4:]).all()


def test_a_missing_shard_is_nan_in_products(toy_copy: Path) -> None:
    store = hs.open(toy_copy, include_failed=True)
    (toy_copy / store.contents.specs["heads"].file(32)).unlink()
    found = coordinate_products(store, [(0, 0)], [np.ones((store.head_dim + 3, 1))])[0]
    assert np.isnan(found[32:64]).all()
    assert np.isfinite(found[:32]).sum() == 31


def begin_in_chunks(rows: dict[str, int], path: Path, toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Precompute the first unit in chunks with other numbers of rows, as an older headspan might have."""

    def interrupt(event: Progress) -> None:
        if event.stage == "images" and event.done > 32:
            raise KeyboardInterrupt

    with monkeypatch.context() as before:
        before.setattr(schema, "_CHUNK_ROWS", rows)
        with pytest.raises(KeyboardInterrupt):
            hs.precompute(out=path, on_progress=interrupt, **toy_run.settings())


def test_a_store_of_other_chunks_is_read_continued_and_verified_as_it_was_planned(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_in_chunks({"heads": 4, "patches": 2}, tmp_path / "old.zarr", toy_run, monkeypatch)
    hs.precompute(out=tmp_path / "old.zarr", **toy_run.settings())
    old, new = hs.open(tmp_path / "old.zarr"), hs.open(toy_run.path)
    assert old.complete
    assert (old.contents.specs["heads"].chunk[0], new.contents.specs["heads"].chunk[0]) == (4, 32)
    vectors = np.random.default_rng(0).standard_normal((2, new.joint)).astype(np.float32)
    # Only through memory maps, not through Zarr.
    monkeypatch.setattr(Contents, "values", None)
    for layer in new.layers:
        assert (old.head_coordinates(layer, 1) == new.head_coordinates(layer, 1)).all()
        assert (old.patch_coordinates(3, layer) == new.patch_coordinates(3, layer)).all()
    monkeypatch.undo()
    heads = [(0, 1), (2, 0)]
    assert relative_error(similarities(old, vectors, heads), similarities(new, vectors, heads)) < tolerances.FLOAT32_SUM
    assert hs.verify(hs.open(old.path, include_failed=True)).problems == ()


def test_an_older_store_whose_metadata_are_damaged_is_not_continued_in_other_chunks(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "old.zarr"
    begin_in_chunks({"heads": 4}, path, toy_run, monkeypatch)
    whole = (path / "heads" / "zarr.json").read_bytes()
    (path / "heads" / "zarr.json").write_bytes(whole[:100])
    with pytest.raises(StoreError, match=r"heads/zarr\.json: differs from the plan; run headspan repair; if that"):
        hs.precompute(out=path, **toy_run.settings())
    (path / "heads" / "zarr.json").write_bytes(whole)
    hs.precompute(out=path, **toy_run.settings())
    assert hs.verify(hs.open(path, include_failed=True)).problems == ()


@pytest.mark.parametrize("position", range(0, 1100, 100))
def test_damaged_metadata_of_one_array_leave_the_others_readable(position: int, toy_copy: Path) -> None:
    path = toy_copy / "heads" / "zarr.json"
    data = bytearray(path.read_bytes())
    data[position] ^= 64
    path.write_bytes(data)
    store = hs.open(toy_copy, include_failed=True)
    assert store.contents.specs.keys() == {"ok", "embedding", "norm", "heads", "patches", "mlps", "mlp_means"}
    assert store.contents.specs["patches"].chunk == zarr_array(store.path, "patches").chunks
    assert [problem.where for problem in hs.verify(store).problems] == ["heads/zarr.json"]


def test_shards_that_zarr_rewrote_in_another_order_are_not_mapped(
    toy_copy: Path,
) -> None:
    store = hs.open(toy_copy)
    layer = store.layers[-1]
    wanted = store.head_coordinates(layer, 1)
    size = (toy_copy / store.contents.specs["heads"].file(0)).stat().st_size
    array = zarr.open_group(toy_copy, mode="r+")["heads"]
    assert isinstance(array, zarr.Array)
    array[...] = array[...]
    # The size is the same and the index is valid, but the chunks are in another order.
    assert (toy_copy / store.contents.specs["heads"].file(0)).stat().st_size == size
    assert (hs.open(toy_copy).head_coordinates(layer, 1) == wanted).all()


def test_shards_that_another_program_rewrote_are_read_by_zarr(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    layer = store.layers[0]
    wanted = store.head_coordinates(layer, 0)
    vectors = np.random.default_rng(0).standard_normal((2, store.joint)).astype(np.float32)
    scores = similarities(store, vectors, [(layer, 0), (layer, 1)])
    spec = store.contents.specs["heads"]
    path = toy_copy / spec.file(0)
    data = path.read_bytes()
    end = len(data) - 4
    begin = end - 16 * math.prod(whole // part for whole, part in zip(spec.shard, spec.chunk, strict=True))
    # The format allows gaps between chunks: eight bytes before the first one.
    index = np.frombuffer(data[begin:end], "<u8").reshape(-1, 2).copy()
    index[index[:, 1] != 2**64 - 1, 0] += 8
    packed = index.tobytes()
    path.write_bytes(bytes(8) + data[:begin] + packed + google_crc32c.value(packed).to_bytes(4, "little"))
    again = hs.open(toy_copy)
    assert (again.head_coordinates(layer, 0) == wanted).all()
    assert relative_error(similarities(again, vectors, [(layer, 0), (layer, 1)]), scores) < tolerances.FLOAT32_SUM


def test_the_error_about_a_damaged_shard_says_what_to_do(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    path = toy_copy / store.contents.specs["heads"].file(0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="heads cannot be read"):
        store.head_coordinates(store.layers[0], 0)
    with pytest.raises(StoreError, match="heads cannot be read"):
        coordinate_products(store, [(store.layers[0], 0)], [np.ones((store.head_dim + 3, 1), np.float32)])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


SMALL_SHARDS = spec_of((40, 2), (2, 2), (2, 2), "float32")


@pytest.fixture
def small_shards(tmp_path: Path) -> Path:
    """An array of 20 shards."""
    write_all(tmp_path, SMALL_SHARDS, random_values(SMALL_SHARDS.shape, SMALL_SHARDS.dtype))
    return tmp_path


@pytest.fixture
def few_files() -> Iterator[None]:
    """This process may open 24 more files, so that 12 of them and half of the earlier ones may be maps."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    mapped._OPEN.clear()
    setrlimit(RLIMIT_NOFILE, (open_files() + 24, hard))
    yield
    setrlimit(RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_maps_of_dropped_arrays_are_closed_at_once(small_shards: Path) -> None:
    gc.disable()
    try:
        before = open_files()
        array = MappedRows(small_shards, SMALL_SHARDS)
        array.read()
        assert open_files() == before + 20
        del array
        assert open_files() == before
    finally:
        gc.enable()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_all_arrays_of_a_process_share_one_limit_on_maps_and_views_stay_valid(
    small_shards: Path, few_files: None
) -> None:
    before = open_files()
    arrays = [MappedRows(small_shards, SMALL_SHARDS) for _ in range(9)]
    wanted = arrays[0].read()
    view = next(arrays[0].chunks())
    for array in arrays * 2:
        assert (array.read() == wanted).all()
        assert open_files() <= before + mapped._most_maps() + 2
    assert (view[:, 0] == wanted[:2]).all()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_without_free_descriptors_maps_are_closed_and_then_the_error_says_what_to_do(
    small_shards: Path, few_files: None
) -> None:
    array = MappedRows(small_shards, SMALL_SHARDS)
    wanted = array.row(0)
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    try:
        # A map needs one descriptor for its file and one for itself, but only for a moment.
        os.close(taken.pop())
        other = MappedRows(small_shards, SMALL_SHARDS)
        assert (other.row(0) == wanted).all()
        taken.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(StoreError, match=r"c/1/0: cannot be mapped into memory \(.*\); close .* \(ulimit -n\)"):
            other.row(2)
    finally:
        for descriptor in taken:
            os.close(descriptor)
