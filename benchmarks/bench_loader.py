"""Does the PyTorch dataset feed a training loop at the rate of the disk?

A store of 400,000 images of random numbers with the sizes of ViT-B/32 (heads of 4 layers, embeddings). The plain read
reads the files of both arrays one after the other into one buffer of 8 MiB. The dataset yields batches of 1,024 images,
shuffled by block, without DataLoader workers. The loop over zarr-python reads whole Zarr shards of 16,384 rows,
shuffles each, and cuts batches from it. The page cache is emptied of the files before each reading, or warm.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import headspan as hs
from benchmarks.measure import benchmark, median, ratio
from benchmarks.models import MODELS, TOY, store_size
from benchmarks.random_store import write_store

QUESTION = "batches for training"
DUE_TO = (
    "Blocks of 1,024 images are read from the files in pieces of 128 KB, while batches are gathered from the buffer "
    "before, so a cold read costs little more than the disk. In a warm cache the plain read only copies; a shuffled "
    "batch takes 48 pieces of 128 bytes for each image, and fresh memory. The load is that of other processes on the "
    "machine."
)
MARK = 0.8
_ARRAYS = ("heads", "embedding")
_BUFFER_BYTES = 8 << 20


def run(toy: bool) -> dict[str, Any]:
    """Rates of all readers, cold and warm, and of random access."""
    size = store_size(TOY, 600, 64, 2) if toy else store_size(MODELS["ViT-B-32"], 400_000, 16_384, 4)
    batch, rounds = (64, 2) if toy else (1024, 5)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.zarr"
        write_store(path, size, ("heads",), np.random.default_rng(0))
        files = [file for array in _ARRAYS for file in sorted((path / array / "c").rglob("*")) if file.is_file()]
        size_bytes = sum(file.stat().st_size for file in files)
        works: dict[str, Callable[[], object]] = {
            "plain": lambda: _plain(files),
            "dataset": lambda: _epoch(path, batch, "float16"),
            "dataset, as float32": lambda: _epoch(path, batch, "float32"),
            "zarr": lambda: _count(_zarr_batches(path, size.unit_images, batch)),
        }
        times = {
            state: _times(works, rounds, (lambda: _forget(files)) if state == "cold" else None)
            for state in ("cold", "warm")
        }
        counts = {name: works[name]() for name in works if name != "plain"}
        assert set(counts.values()) == {size.images}, counts
        random_batches = 2 if toy else 40
        random = [_random_access(path, batch, random_batches) for _ in range(rounds)]
    return {
        "images": size.images,
        "bytes": size_bytes,
        "batch": batch,
        "threads": min(4, os.cpu_count() or 1),
        "load_before": round(load, 2),
        "zarr_settings": {
            "rows_at_once": size.unit_images,
            "async.concurrency": zarr.config.get("async.concurrency"),
            "threading.max_workers": zarr.config.get("threading.max_workers"),
        },
        "rates": {
            state: {
                name: {
                    "gb_s": float(f"{size_bytes / median(taken) / 1e9:.3g}"),
                    "images_s": round(size.images / median(taken)),
                    "share": ratio(each, "plain", name),
                }
                for name, taken in each.items()
            }
            for state, each in times.items()
        },
        "random_access_images_s": round(batch * random_batches / median(random)),
        "mark": MARK,
    }


def _times(
    works: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], None] | None
) -> dict[str, list[float]]:
    """Seconds of each of `works` in each round, in turns, with `before` called before each."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(-1, rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            if before is not None:
                before()
            began = time.perf_counter()
            works[name]()
            if number >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def _plain(files: Iterable[Path]) -> None:
    buffer = bytearray(_BUFFER_BYTES)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _forget(files: Iterable[Path]) -> None:
    """Remove the files from the page cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        for path in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def _epoch(path: Path, batch: int, dtype: str) -> int:
    dataset = hs.torch_dataset(path, _ARRAYS, style="iterable", shuffle=True, batch_size=batch, dtype=dtype)
    return _count(DataLoader(dataset, batch_size=None))


def _zarr_batches(path: Path, rows: int, batch: int) -> Iterable[dict[str, torch.Tensor]]:
    """What a user of zarr-python would write: a whole Zarr shard at once, shuffled, in batches."""
    arrays: dict[str, Any] = {name: zarr.open_array(path / name, mode="r") for name in _ARRAYS}
    images, random = arrays["heads"].shape[0], np.random.default_rng(0)
    for first in random.permutation(np.arange(0, images, rows)).tolist():
        read = {name: np.asarray(array[first : first + rows]) for name, array in arrays.items()}
        order = random.permutation(len(read["heads"]))
        for begin in range(0, len(order), batch):
            yield {name: torch.from_numpy(values[order[begin : begin + batch]]) for name, values in read.items()}


def _count(batches: Iterable[Mapping[str, torch.Tensor]]) -> int:
    return sum(len(batch["embedding"]) for batch in batches)


def _random_access(path: Path, batch: int, batches: int) -> float:
    """Seconds of some batches of images at random over the whole store, in a warm cache."""
    dataset: Any = hs.torch_dataset(path, _ARRAYS, dtype="float16")
    sampler = BatchSampler(RandomSampler(dataset, num_samples=batch * batches), batch, drop_last=False)
    began = time.perf_counter()
    _count(DataLoader(dataset, batch_size=None, sampler=sampler))
    return time.perf_counter() - began


_NAMES = {
    "plain": "plain read",
    "dataset": "dataset, float16 as stored",
    "dataset, as float32": "dataset, as float32",
    "zarr": "loop over zarr-python",
}


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """Rates of each reader, cold and warm."""
    found = [["page cache", "reader", "images/s", "GB/s of stored bytes", "÷ plain read"]]
    for state, rates in line["rates"].items():
        for name, rate in rates.items():
            cells = [f"{rate['images_s']:,}", f"{rate['gb_s']:.2f}", f"{rate['share']:.2f}"]
            found.append([f"{state}, load {line['load_before']:.1f}", _NAMES[name], *cells])
    access = line["random_access_images_s"]
    gb_s = access * line["bytes"] / line["images"] / 1e9
    found.append(["warm", "map style, images at random", f"{access:,}", f"{gb_s:.2f}", ""])
    return found


if __name__ == "__main__":
    benchmark(QUESTION, run)
