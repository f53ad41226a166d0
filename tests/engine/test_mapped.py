"""16 bits to 32, and shards read through memory maps: the same numbers, or left to Zarr."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

import headspan as hs
from headspan.analyse.neighbours import similarities
from headspan.errors import StoreError
from headspan.store import half
from headspan.store.mapped import MappedRows, UnmappableError
from tests import tolerances
from tests.conftest import ToyRun, zarr_array
from tests.engine.test_shard_writer import random_values, spec_of, write_all
from tests.tolerances import relative_error


def test_every_number_of_16_bits_is_the_same_in_32() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    found = half.to_float32(every)
    assert (found.view(np.uint32) == every.astype(np.float32).view(np.uint32)).all()


@pytest.mark.parametrize("shape", [(0, 3), (1,), (257, 3), (3, half._AT_ONCE // 2 + 1)])
def test_arrays_of_any_shape_and_stride_are_converted(shape: tuple[int, ...]) -> None:
    values = random_values(shape, "float16")
    assert (half.to_float32(values) == values.astype(np.float32)).all()
    assert (half.to_float32(values.T) == values.T.astype(np.float32)).all()


SPEC = spec_of((13, 3, 4, 6, 5), (8, 3, 4, 6, 5), (4, 1, 2, 6, 5), "float16")


def test_one_place_of_the_first_axes_is_read_over_all_rows_or_in_one(tmp_path: Path) -> None:
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
        wanted = np.asarray(zarr_array(store.path, "heads")[...])[store.rows, store.kept(layer), 1].astype(np.float32)
        assert (store.head_coordinates(layer, 1) == wanted).all()
        matrix = np.random.default_rng(layer).standard_normal((store.head_dim, 3)).astype(np.float32)
        assert relative_error(store.head_products(layer, 1, matrix), wanted @ matrix) < tolerances.FLOAT32_SUM


def test_a_store_whose_shards_another_program_wrote_anew_is_read_by_zarr(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    layer = store.layers[0]
    wanted = store.head_coordinates(layer, 0)
    vectors = np.random.default_rng(0).standard_normal((2, store.joint)).astype(np.float32)
    scores = similarities(store, [(layer, 0), (layer, 1)], vectors)
    spec = store.row_specs["heads"]
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
    assert relative_error(similarities(again, [(layer, 0), (layer, 1)], vectors), scores) < tolerances.FLOAT32_SUM


def test_a_damaged_shard_is_refused_with_what_to_do(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    path = toy_copy / store.row_specs["heads"].file(0)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="heads cannot be read"):
        store.head_coordinates(store.layers[0], 0)
    with pytest.raises(StoreError, match="heads cannot be read"):
        store.head_products(store.layers[0], 0, np.ones((store.head_dim, 1), np.float32))
