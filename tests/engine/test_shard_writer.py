"""Write shards, and read them with zarr-python, with TensorStore and through memory maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from headspan.errors import StoreError
from headspan.io.files import StagedFile, checksum, staged, write_atomically
from headspan.io.local import LocalStorage
from headspan.store.array_spec import ArraySpec
from headspan.store.mapped import MappedRows
from headspan.store.schema import create_array, whole_array
from headspan.store.write import shard as shard_writer
from headspan.store.write.shard import ShardPieces, write_array
from tests.conftest import zarr_array


def spec_of(shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> ArraySpec:
    dims = tuple(f"axis_{place}" for place in range(len(shape)))
    return ArraySpec("group/values", dims, shape, dtype, shard=shard, chunk=chunk)


def random_values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    return generator.integers(1, 100, shape).astype(dtype)


def write_all(root: Path, spec: ArraySpec, values: np.ndarray) -> list[tuple[str, int, int]]:
    create_array(zarr.create_group(store=root, zarr_format=3), spec)
    written = []
    for first_row in range(0, spec.shape[0], spec.shard[0]):
        written.append(write_shard(root, spec, first_row, [(first_row, values[first_row : first_row + spec.shard[0]])]))
    return written


def write_shard(
    root: Path, spec: ArraySpec, first_row: int, runs: list[tuple[int, np.ndarray]]
) -> tuple[str, int, int]:
    """Write a shard from runs of rows. Returns its name, size and checksum."""
    name = spec.file(first_row)
    with StagedFile(root / name, "test") as file:
        pieces = ShardPieces(spec, first_row, file.write)
        for row, values in runs:
            pieces.put(row, values)
        pieces.end()
        found = file.finish()
    staged(root / name, "test").rename(root / name)
    return name, *found


def by_zarr(root: Path, spec: ArraySpec) -> np.ndarray:
    return np.asarray(zarr_array(root, spec.name)[...])


def by_tensorstore(root: Path, spec: ArraySpec) -> np.ndarray:
    kvstore = {"driver": "file", "path": f"{root / spec.name}/"}
    return np.asarray(ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result().read().result())


def by_mapping(root: Path, spec: ArraySpec) -> np.ndarray:
    return MappedRows(root, spec).read()


Reader = Callable[[Path, ArraySpec], np.ndarray]
READERS = pytest.mark.parametrize("read", [by_zarr, by_tensorstore])
# Rows that are not a multiple of chunks or shards, chunks that reach beyond the array, and zero to four further axes.
SHAPES = [
    ((1,), (64,), (64,), "uint8"),
    ((257,), (64,), (8,), "uint8"),
    ((1, 3), (64, 3), (64, 3), "float32"),
    ((257, 5), (128, 5), (64, 5), "float32"),
    ((257, 2, 3, 5), (256, 2, 3, 5), (256, 1, 1, 5), "float16"),
    ((13, 2, 3, 4, 5), (16, 2, 3, 4, 5), (8, 1, 1, 4, 5), "float16"),
    ((9, 4, 6), (3, 4, 6), (1, 2, 3), "float64"),
    ((70, 4, 7), (32, 4, 7), (32, 4, 7), "float32"),
    ((3, 2), (1, 2), (1, 1), "int64"),
]


@pytest.mark.parametrize("read", [by_zarr, by_tensorstore, by_mapping])
@pytest.mark.parametrize(("shape", "shard", "chunk", "dtype"), SHAPES)
def test_shards_are_read_back_byte_for_byte(
    shape: tuple[int, ...], shard: tuple[int, ...], chunk: tuple[int, ...], dtype: str, read: Reader, tmp_path: Path
) -> None:
    spec, values = spec_of(shape, shard, chunk, dtype), random_values(shape, dtype)
    written = write_all(tmp_path, spec, values)
    found = read(tmp_path, spec)
    assert found.dtype == values.dtype
    assert found.shape == values.shape
    assert found.tobytes() == values.tobytes()
    assert len(written) == math.ceil(shape[0] / shard[0])
    for name, size, crc in written:
        data = (tmp_path / name).read_bytes()
        assert (size, crc) == (len(data), google_crc32c.value(data)) == checksum(tmp_path / name)


@READERS
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64"])
def test_a_missing_shard_reads_as_nan_or_zero(dtype: str, read: Reader, tmp_path: Path) -> None:
    spec, values = spec_of((7, 3), (3, 3), (1, 3), dtype), random_values((7, 3), dtype)
    (_, middle, _) = write_all(tmp_path, spec, values)
    (tmp_path / middle[0]).unlink()
    found = read(tmp_path, spec)
    hole = found[3:6]
    assert np.isnan(hole).all() if np.dtype(dtype).kind == "f" else (hole == 0).all()
    assert (found[:3] == values[:3]).all()
    assert (found[6:] == values[6:]).all()


@READERS
def test_rows_that_were_never_put_are_nan(read: Reader, tmp_path: Path) -> None:
    spec = spec_of((11, 3), (8, 3), (4, 3), "float16")
    create_array(zarr.create_group(store=tmp_path, zarr_format=3), spec)
    write_shard(tmp_path, spec, 0, [(5, np.ones((1, 3), np.float16))])
    found = read(tmp_path, spec)
    assert (found[5] == 1).all()
    assert np.isnan(np.delete(found, 5, axis=0)).all()


@READERS
def test_the_crc_of_the_index_reveals_a_flipped_bit(read: Reader, tmp_path: Path) -> None:
    spec, values = spec_of((5, 3), (8, 3), (4, 3), "float32"), random_values((5, 3), "float32")
    ((name, size, _),) = write_all(tmp_path, spec, values)
    data = bytearray((tmp_path / name).read_bytes())
    # The first offset of the index: two chunks of 16 bytes each, and four bytes of checksum.
    data[size - 4 - 32] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)(crc|checksum|digest)"):
        read(tmp_path, spec)


def test_the_index_is_last_and_has_the_right_checksum(tmp_path: Path) -> None:
    spec, values = spec_of((5, 2, 3), (8, 2, 3), (4, 1, 3), "float32"), random_values((5, 2, 3), "float32")
    ((name, size, _),) = write_all(tmp_path, spec, values)
    data = (tmp_path / name).read_bytes()
    index, crc = data[-4 - 4 * 16 : -4], int.from_bytes(data[-4:], "little")
    assert google_crc32c.value(index) == crc
    chunk_bytes = 4 * 3 * 4
    assert np.frombuffer(index, "<u8").reshape(4, 2).tolist() == [[n * chunk_bytes, chunk_bytes] for n in range(4)]
    assert size == 4 * chunk_bytes + 4 * 16 + 4


def test_chunks_beyond_the_end_of_the_array_take_no_space(tmp_path: Path) -> None:
    spec = spec_of((257, 3), (1024, 3), (64, 3), "float32")
    ((_, size, _),) = write_all(tmp_path, spec, random_values((257, 3), "float32"))
    # Five of sixteen chunks, each 64 × 3 × 4 bytes, and the whole index.
    assert size == 5 * 64 * 3 * 4 + 16 * 16 + 4


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_rows_may_come_in_any_runs_with_gaps_and_in_pieces_of_any_size(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows = data.draw(st.integers(1, 40), "rows")
    chunk_rows = data.draw(st.sampled_from([1, 2, 4, 8]), "chunk rows")
    shard_rows = chunk_rows * data.draw(st.integers(1, 6), "chunks a shard")
    tail = data.draw(st.sampled_from([(), (3,), (2, 3)]), "tail")
    first_row = shard_rows * data.draw(st.integers(0, (rows - 1) // shard_rows), "shard")
    spec = spec_of((rows, *tail), (shard_rows, *tail), (chunk_rows, *(1 for _ in tail)), "float32")
    values = random_values((rows, *tail), "float32")
    end = min(first_row + shard_rows, rows)
    cuts = data.draw(st.sets(st.integers(first_row, end)), "cuts")
    runs = list(pairwise(sorted(cuts | {first_row, end})))
    missing = data.draw(st.sets(st.sampled_from(runs)), "missing")
    wanted = values.copy()
    for start, stop in missing:
        wanted[start:stop] = np.nan

    root = tmp_path_factory.mktemp("runs")
    create_array(zarr.create_group(store=root, zarr_format=3), spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "_PIECE_BYTES", data.draw(st.sampled_from([1, 100, 1000]), "bytes of a piece"))
        patch.setattr(shard_writer, "_UNCOPIED_BYTES", data.draw(st.sampled_from([1, 50, 10**6]), "bytes not copied"))
        write_shard(
            root, spec, first_row, [(start, values[start:stop]) for start, stop in runs if (start, stop) not in missing]
        )
    for read in (by_zarr, by_tensorstore):
        assert np.array_equal(read(root, spec)[first_row:end], wanted[first_row:end], equal_nan=True)


def test_a_whole_array_is_one_file(tmp_path: Path) -> None:
    values = random_values((2, 3, 5, 7), "float32")
    spec = whole_array("model/matrix", ("layer", "head", "head_dim", "joint"), values.shape, "float32")
    create_array(zarr.create_group(store=tmp_path, zarr_format=3), spec)
    name, _, _ = write_array(LocalStorage(tmp_path), spec, values)
    assert name == "model/matrix/c/0/0/0/0"
    assert by_zarr(tmp_path, spec).tobytes() == values.tobytes()
    assert by_tensorstore(tmp_path, spec).tobytes() == values.tobytes()


def test_only_a_complete_file_gets_its_name(tmp_path: Path) -> None:
    target = tmp_path / "folder" / "file"

    def parts() -> Iterator[bytes]:
        yield b"half"
        assert not target.exists()
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"file: cannot be written \(No space left on device\); free disk space"):
        write_atomically(target, parts())
    assert list(target.parent.iterdir()) == []


def test_an_interrupted_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", parts())
    assert list(tmp_path.iterdir()) == []
