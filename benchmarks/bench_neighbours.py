"""Are an image's nearest images through one head found at the speed of memory?

A store of 1,000,000 images of random numbers, in units of the default size for a GPU. The search runs on an open store
whose files are in the page cache. The ceiling is a scan of the bytes that the search must read (the head's numbers and
three scalars an image) in a memory-mapped file, summed as whole words, one thread a core.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.random_store import write_store
from headspan.explore.nearest.neighbours import nearest_to_image
from headspan.store.schema import Dimensions

QUESTION = "neighbours of an image through one head"
DUE_TO = "SIMD kernels multiply the stored float16 numbers in place, without a converted copy."
MARK = 0.5
# Bytes of a piece of the scan: several a thread, so that no thread waits long for the last one.
_PIECE_BYTES = 4 << 20


def run(toy: bool) -> dict[str, Any]:
    """Seconds of a search, and its rate divided by the scan's."""
    images, unit_images = (600, 64) if toy else (1_000_000, 16_384)
    size = Dimensions(
        images,
        unit_images,
        layers=(0,),
        all_layers=1,
        direct_layers=1,
        heads=2,
        head_dim=64,
        tokens=50,
        prefix_tokens=1,
        # Small, since a search reads no embeddings.
        joint=32,
        terms=2,
    )
    random = np.random.default_rng()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "run.zarr", size, ("heads",), random)
        store = hs.open(folder / "run.zarr")
        found = nearest_to_image(store, image=images // 3, heads=[(0, 1)])
        correct = _is_nearest(store, images // 3, found.images)
        numbers = store.head_coordinates(0, 1, np.float16)
        plain = folder / "plain.bin"
        with plain.open("wb") as file:
            numbers.tofile(file)
            store.norm.tofile(file)
        mapped = np.memmap(plain, np.uint64, mode="r")
        threads = os.cpu_count() or 1
        step = _PIECE_BYTES // mapped.itemsize
        pieces = [mapped[first : first + step] for first in range(0, len(mapped), step)]
        with ThreadPoolExecutor(threads) as pool:
            times = alternate(
                {
                    "search": lambda: nearest_to_image(store, image=images // 2, heads=[(0, 1)]),
                    "scan": lambda: sum(map(int, pool.map(np.add.reduce, pieces))),
                },
                repeats=101,
                warmup=2,
            )
        size_bytes = mapped.nbytes
        del pieces, mapped
    return {
        "images": images,
        "bytes": size_bytes,
        "threads": threads,
        "seconds": median(times["search"]),
        "scan_gb_s": float(f"{size_bytes / median(times['scan']) / 1e9:.3g}"),
        "share": ratio(times, "scan", "search"),
        "mark": MARK,
        "correct": correct,
    }


def _is_nearest(store: hs.Store, image: int, found: np.ndarray) -> bool:
    """Whether the store's dense contributions have the same nearest images."""
    heads = store.head(0, 1)
    scores = heads @ heads[image]
    scores[image] = -np.inf
    # Neighbours with almost equal scores may change places.
    return bool(np.allclose(np.sort(scores)[::-1][: len(found)], scores[found], rtol=1e-4))


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row: seconds of a search, and the scan."""
    return [
        ["images", "search", "scan of the same bytes", "scan ÷ search"],
        [
            f"{line['images']:,}",
            f"{line['seconds'] * 1e3:,.1f} ms" + ("" if line["correct"] else ", WRONG"),
            f"{line['bytes'] / 1e6:,.0f} MB at {line['scan_gb_s']:.1f} GB/s, {line['threads']} threads",
            f"{line['share']:.2f}",
        ],
    ]


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: seconds, and the scan."""
    return (
        f"{line['images']:,} images searched in {line['seconds'] * 1e3:,.0f} ms",
        f"a scan of the same {line['bytes'] / 1e6:,.0f} MB in memory takes {line['share']:.2f} of the search's time",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
