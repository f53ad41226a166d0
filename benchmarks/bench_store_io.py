"""Are stores written and read as fast as plain files?

Both sides are measured alternately. Writing, unit by unit: a unit through the store's own writer, with checksums,
moments and commit, against `np.tofile` of the same arrays; both sides fsync every file. Reading, from the page cache:
every head over all images, and single images' patches in random order, against a plain read of a file that holds the
same bytes in the wanted order. Both read into fresh arrays, as the stored float16 numbers, and once more as float32
against a plain read with NumPy's conversion.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.measure import alternate, benchmark, ratio
from benchmarks.models import MODELS, TOY, store_size
from benchmarks.random_store import add_moments, planned_store, unit_batches, zero_moments
from headspan.model.allocator import keep_freed_memory
from headspan.shards.samples import Unit
from headspan.store.head_space import stored_heads
from headspan.store.schema import Dimensions, image_bytes
from headspan.store.write.unit import StoreWriter

QUESTION = "store write and read"
DUE_TO = (
    "Writing and checksums overlap with the next rows, and a chunk holds what is read at once. Ratios above 1 come "
    "from memory maps, which save a copy; as float32, from SIMD conversion instead of NumPy's."
)
WRITE_MARK, READ_MARK = 0.85, 0.8


def run(toy: bool) -> dict[str, Any]:
    """Rates of writing and reading over those of plain files, for a store with patches and for one of heads."""
    # As in a run.
    keep_freed_memory()
    model = TOY if toy else MODELS["ViT-B-32"]
    layers = 2 if toy else 4
    # Half a gigabyte of patches; units have the default size for a CPU, and for heads that for a GPU.
    patches = store_size(model, 24 if toy else 1_792, 8 if toy else 256, layers)
    heads = store_size(model, 48 if toy else 98_304, 16 if toy else 16_384, layers)
    random, rounds = np.random.default_rng(), 2 if toy else 7
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = {
            "patches": _write(folder / "patches", patches, ("heads", "patches"), random),
            "heads": _write(folder / "heads", heads, ("heads",), random),
        }
        read = {
            "patches": _read_patches(folder / "patches", random, rounds),
            "heads": _read_heads(folder / "heads", rounds),
        }
    return {
        "page_cache": "warm on both sides",
        "write": written,
        "write_mark": WRITE_MARK,
        "read": read,
        "read_mark": READ_MARK,
    }


def _write(folder: Path, size: Dimensions, emit: tuple[str, ...], random: np.random.Generator) -> dict[str, Any]:
    """Write a store and plain files of the same bytes; the ratio of their rates."""
    folder.mkdir()
    store = planned_store(folder / "run.zarr", size, emit, random)
    taken: dict[str, list[float]] = {"store": [], "plain": []}
    for unit in store.unfinished():
        batches = list(unit_batches(unit, size, emit, random))
        whole = {name: np.concatenate([arrays[name] for _, arrays in batches]) for name in batches[0][1]}
        moments = zero_moments(size)
        for _, arrays in batches:
            add_moments(moments, arrays)

        def through_the_store(unit: Unit = unit, batches: Any = batches, moments: Any = moments) -> None:
            with store.begin(unit) as writer:
                for rows, arrays in batches:
                    writer.put(rows, np.ones(len(rows), bool), arrays)
                writer.commit(moments, [])

        def plainly(unit: Unit = unit, whole: Any = whole) -> None:
            for name, values in whole.items():
                with (folder / f"{name}-{unit.index}.bin").open("wb") as file:
                    values.tofile(file)
                    file.flush()
                    os.fsync(file.fileno())

        works: dict[str, Callable[[], None]] = {"store": through_the_store, "plain": plainly}
        for name in works if unit.index % 2 else reversed(works):
            began = time.perf_counter()
            works[name]()
            taken[name].append(time.perf_counter() - began)
    store.finish()
    return {
        "units": len(store.units),
        "unit_bytes": size.unit_images * image_bytes(store.specs),
        "gb_s": _gb_s(store, taken["store"]),
        "plain_gb_s": _gb_s(store, taken["plain"]),
        "share": ratio(taken, "plain", "store"),
    }


def _gb_s(store: StoreWriter, taken: list[float]) -> float:
    return float(f"{store.size.images * image_bytes(store.specs) / sum(taken) / 1e9:.3g}")


def _read_heads(folder: Path, rounds: int) -> dict[str, Any]:
    """Every head over all images."""
    store = hs.open(folder / "run.zarr")
    heads = stored_heads(store)
    files = [folder / f"L{layer}.H{head}.bin" for layer, head in heads]
    for (layer, head), file in zip(heads, files, strict=True):
        store.head_coordinates(layer, head, np.float16).tofile(file)
    works: dict[str, Callable[[], object]] = {
        "store": lambda: [store.head_coordinates(layer, head, np.float16) for layer, head in heads],
        "store, as float32": lambda: [store.head_coordinates(layer, head) for layer, head in heads],
        "plain": lambda: [np.fromfile(file, np.float16) for file in files],
        "plain, as float32": lambda: [np.fromfile(file, np.float16).astype(np.float32) for file in files],
    }
    return _read_rates(works, sum(file.stat().st_size for file in files), rounds)


def _read_patches(folder: Path, random: np.random.Generator, rounds: int) -> dict[str, Any]:
    """Single images' patches of all layers, in random order."""
    store = hs.open(folder / "run.zarr")
    images = random.permutation(store.images)[:64].tolist()
    # In a plain file an image's numbers are contiguous, in the wanted order.
    shape = (len(store.layers), store.heads_per_layer, store.tokens, store.head_dim)
    row_bytes = int(np.prod(shape)) * 2
    units = sorted(folder.glob("patches-*.bin"), key=lambda path: int(path.stem.rpartition("-")[2]))
    unit_images = units[0].stat().st_size // row_bytes
    descriptors = [os.open(path, os.O_RDONLY) for path in units]

    def plain(image: int) -> np.ndarray:
        unit, place = divmod(image, unit_images)
        return np.frombuffer(os.pread(descriptors[unit], row_bytes, place * row_bytes), np.float16).reshape(shape)

    works: dict[str, Callable[[], object]] = {
        "store": lambda: [store.patch_coordinates(image, dtype=np.float16) for image in images],
        "store, as float32": lambda: [store.patch_coordinates(image) for image in images],
        "plain": lambda: [plain(image) for image in images],
        "plain, as float32": lambda: [plain(image).astype(np.float32) for image in images],
    }
    try:
        own = store.patch_coordinates(images[0]).transpose(0, 2, 1, 3)
        assert (own == plain(images[0])).all(), "the plain files hold the store's numbers"
        return _read_rates(works, len(images) * row_bytes, rounds)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _read_rates(works: Mapping[str, Callable[[], object]], size_bytes: int, rounds: int) -> dict[str, Any]:
    times = alternate(works, rounds)
    return {
        "bytes": size_bytes,
        "gb_s": float(f"{size_bytes / np.median(times['store']) / 1e9:.3g}"),
        "plain_gb_s": float(f"{size_bytes / np.median(times['plain']) / 1e9:.3g}"),
        "share": ratio(times, "plain", "store"),
        "share_as_float32": ratio(times, "plain, as float32", "store, as float32"),
    }


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """Rows for heads and patches, written and read: rates, and shares of plain files' rates."""
    found = [["", "store", "plain file", "store ÷ plain", "as float32"]]
    for verb, rows in (("write", line["write"]), ("read", line["read"])):
        for kind, row in rows.items():
            as_float32 = f"{row['share_as_float32']:.2f}" if "share_as_float32" in row else ""
            rates = [f"{row['gb_s']:.2g} GB/s", f"{row['plain_gb_s']:.2g} GB/s"]
            found.append([f"{verb} {kind}", *rates, f"{row['share']:.2f}", as_float32])
    return found


if __name__ == "__main__":
    benchmark(QUESTION, run)
