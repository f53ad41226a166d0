"""How long does each query take on a store of 1,000,000 images, and how much memory does it need?

The store has ViT-B/32's sizes and its last four layers, and numbers with a decaying spectrum instead of isotropic ones
(`random_store.Spectrum`). Queries run on an open store whose files are in the page cache; each call asks about another
image, text or selection, so no result is reused. Vectors of texts are in the store, so no query loads a model; only the
map without stored patches does, over a few drawn scenes. The ceiling of a query that reads all images is a scan of as
many bytes of the store's own files through memory maps, summed as whole words, one thread a core. The first call is on
a store that was just opened; where many numbers are read, the second one has a sketch built for later ones, which are
measured when it is there. Memory is the
growth of anonymous memory from before the first call, with what is kept for later calls: files in the page cache do not
count.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.measure import alternate, benchmark, median, own_cache, ratio, seconds
from benchmarks.memory import growth
from benchmarks.models import MODELS, TOY, store_size
from benchmarks.pictures import photo_like, write_shards
from benchmarks.random_store import Spectrum, write_store
from headspan.background import finish
from headspan.config import PrecomputeSettings
from headspan.explore.beside_store import beside_store
from headspan.explore.heads.pursuit import head_pursuit
from headspan.explore.heads.text_shares import text_shares
from headspan.explore.maps.segments import segment
from headspan.explore.nearest.kept_sketches import forget_sketches
from headspan.explore.nearest.neighbours import nearest_to_image, nearest_to_vector
from headspan.explore.nearest.property_neighbours import property_neighbours
from headspan.run.precompute import precompute
from headspan.spans.nulls import DRAWS
from headspan.store.head_space import stored_heads
from headspan.texts.pool import Pool
from headspan.texts.stored import EmbeddedPool, keep_vectors

QUESTION = "queries at a million images"
DUE_TO = (
    "A search reads the numbers of its heads at the speed of memory; where they are many, the second search builds an "
    "eight-bit sketch, and later ones read this and score the images exactly that it leaves. Pursuit and shares of a "
    "text read moments only, whose size does not depend on the number of images. A selection reads its own rows, which "
    "lie scattered."
)
# The most seconds that a query may take on two quiet cores: all of one kind, and a selection.
MARK, SELECTION_MARK = 0.1, 2.0
SELECTED, WORDS, TEXTS, PROPERTY = 10_000, 12, 3_498, 11
_MAPPED_IMAGES = 64
# A store records the text tower of its model, so that the vectors of texts need not be searched for it.
_TOWER = "0" * 64
# Bytes of a piece of the scan: several a thread, so that no thread waits long for the last one.
_PIECE_BYTES = 4 << 20


@dataclass(frozen=True)
class Query:
    """A query: what it asks, the call for the n-th time, and the bytes of stored numbers that it must read."""

    name: str
    call: Callable[[hs.Store, int], object]
    # 0 for a query that reads no images, or few.
    bytes: int = 0
    mark: float = MARK
    repeats: int = 21
    # The folder of the store that it asks.
    store: str = "run.zarr"


def run(toy: bool, images: int = 1_000_000) -> dict[str, Any]:
    """Seconds of each query, beside the scan; its first call, and its growth of memory."""
    images, unit_images, size = (600, 64, TOY) if toy else (images, 16_384, MODELS["ViT-B-32"])
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = store_size(size, images, unit_images, last_layers=min(4, size.layers))
        write_store(
            folder / "run.zarr", sizes, ("heads",), random, spectrum=Spectrum(sizes, random), text_sha256=_TOWER
        )
        few = store_size(size, _MAPPED_IMAGES, _MAPPED_IMAGES, last_layers=min(4, size.layers))
        preprocess = {"size": [size.pixels, size.pixels]}
        spectrum = Spectrum(few, random)
        write_store(
            *(folder / "patches.zarr", few, ("heads", "patches"), random),
            spectrum=spectrum,
            preprocess=preprocess,
        )
        texts = _add_texts(folder / "run.zarr", 60 if toy else TEXTS, random)
        queries = _queries(hs.open(folder / "run.zarr"), texts, random, min(SELECTED, images // 4))
        rows = [_row(folder, query, 2 if toy else query.repeats) for query in queries]
        rows += _maps_without_patches(folder, toy)
    return {"images": images, "threads": os.cpu_count() or 1, "selected": min(SELECTED, images // 4), "rows": rows}


def _add_texts(path: Path, texts: int, random: np.random.Generator) -> EmbeddedPool:
    """Keep a pool of texts and the vectors of a few words in the store, as `headspan textspan` does."""
    store = hs.open(path)
    found = []
    for name, some in (("general", texts), ("words", WORDS)):
        vectors = random.standard_normal((some, store.joint), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        pool = Pool(name, tuple(f"{name} {number}" for number in range(some)), None)
        found.append(EmbeddedPool(pool, vectors, _TOWER))
        keep_vectors(store, found[-1])
    return found[0]


def _queries(store: hs.Store, texts: EmbeddedPool, random: np.random.Generator, selected: int) -> list[Query]:
    images, vectors = store.images, texts.vectors
    heads = stored_heads(store)
    of_property = [heads[place] for place in random.permutation(len(heads))[:PROPERTY]]
    head_bytes, scalars = images * store.head_dim * 2, images * 3 * 4
    words = tuple(f"words {number}" for number in range(WORDS))

    def image(number: int) -> int:
        return number * 7919 % images

    return [
        Query(
            "neighbours of an image through one head",
            lambda store, n: nearest_to_image(store, image(n), heads[:1]),
            head_bytes + scalars,
        ),
        Query(
            f"neighbours through a property of {len(of_property)} heads",
            lambda store, n: nearest_to_image(store, image(n), of_property),
            len(of_property) * head_bytes + scalars,
        ),
        Query(
            "the same, beside the embedding and three random sets of heads",
            lambda store, n: property_neighbours(store, image(n), of_property, draws=3),
            4 * len(of_property) * head_bytes + images * store.joint * 4 + scalars,
            repeats=7,
        ),
        Query(
            "neighbours of a text through one head",
            lambda store, n: nearest_to_vector(store, vectors[n % len(vectors)], heads[:1]),
            head_bytes + scalars,
        ),
        Query(
            "neighbours by the whole embedding",
            lambda store, n: nearest_to_image(store, image(n)),
            images * store.joint * 4 + scalars,
        ),
        Query("which heads carry a text", lambda store, n: text_shares(store, vectors[n % len(vectors)])),
        Query(
            f"head pursuit with a list of {WORDS} words",
            lambda store, n: head_pursuit(store, Pool("words", words, None), draws=0),
        ),
        Query(
            "map of a text from stored patches, all heads",
            lambda store, n: segment(store, n % store.images, vectors[n % len(vectors)]),
            store="patches.zarr",
        ),
        Query(
            f"{selected:,} images described: 20 texts of every head, and heads beside the store",
            lambda store, n: _described(store, texts.pool, random.permutation(images)[:selected], 0),
            mark=SELECTION_MARK,
            repeats=5,
        ),
        Query(
            f"the same with chance, {DRAWS} rotated pools",
            lambda store, n: _described(store, texts.pool, random.permutation(images)[:selected], DRAWS),
            mark=math.inf,
            repeats=1,
        ),
    ]


def _described(store: hs.Store, pool: Pool, images: np.ndarray, draws: int) -> object:
    return beside_store(store, hs.textspan(store, pool, texts_per_head=20, images=images, draws=draws))


def _maps_without_patches(folder: Path, toy: bool) -> list[dict[str, Any]]:
    """Maps over pictures whose patches are not stored: each passes through the model once."""
    model, pictures = ("reference", 4) if toy else ("ViT-B-32", 16)
    encoded = [photo_like(np.random.default_rng(seed), 500, 375) for seed in range(pictures)]
    write_shards(folder / "shards", encoded, pictures)
    settings = {"shards": str(folder / "shards"), "out": str(folder / "heads.zarr"), "model": model}
    precompute(PrecomputeSettings.from_dict({**settings, "pretrained": "random:0", "layers": "last4"}))
    vector = np.random.default_rng(0).standard_normal(hs.open(folder / "heads.zarr").joint).astype(np.float32)
    vector /= np.linalg.norm(vector)
    queries = (
        # The first call loads the model.
        Query(
            f"map without stored patches: one forward pass of {model}",
            lambda store, n: segment(store, n % pictures, vector),
            mark=math.inf,
            repeats=pictures - 6,
            store="heads.zarr",
        ),
        Query("the same map again, from the cache", lambda store, n: segment(store, n % 4, vector), store="heads.zarr"),
    )
    with own_cache(folder):
        return [_row(folder, query, 2 if toy else query.repeats) for query in queries]


def _row(folder: Path, query: Query, repeats: int) -> dict[str, Any]:
    """The query's times in turn with the scan's, the seconds of its first call, and its growth of memory."""
    forget_sketches()
    numbers, store = count(), hs.open(folder / query.store)
    works: dict[str, Callable[[], object]] = {"query": lambda: query.call(store, next(numbers))}
    with growth() as grown:
        first, second = (seconds(works["query"], repeats=1, warmup=0).median for _ in range(2))
        # The sketches that the second call asked for.
        finish()
        with _scan(folder / query.store, query.bytes) as scan:
            times = alternate(works | ({"scan": scan} if query.bytes else {}), repeats=repeats)
    low, high = np.quantile(times["query"], [0.2, 0.8])
    return {
        "query": query.name,
        "seconds": median(times["query"]),
        "low": float(f"{low:.3g}"),
        "high": float(f"{high:.3g}"),
        "mark": query.mark if math.isfinite(query.mark) else None,
        "first_seconds": float(f"{first:.3g}"),
        "second_seconds": float(f"{second:.3g}"),
        "peak_bytes": grown(),
        **({"bytes": query.bytes, "share": ratio(times, "scan", "query")} if query.bytes else {}),
    }


@contextmanager
def _scan(path: Path, size: int) -> Iterator[Callable[[], object]]:
    """A function that sums `size` bytes of the store's files of numbers, one thread a core."""
    pieces: list[np.ndarray] = []
    left = size
    for file in sorted(file for name in ("heads", "embedding") for file in (path / name / "c").rglob("*")):
        if left > 0 and file.is_file():
            mapped = np.memmap(file, np.uint64, mode="r", shape=(file.stat().st_size // 8,))[: -(-left // 8)]
            left -= mapped.nbytes
            step = _PIECE_BYTES // mapped.itemsize
            pieces += [mapped[first : first + step] for first in range(0, len(mapped), step)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield lambda: sum(map(int, pool.map(np.add.reduce, pieces)))


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each query."""
    found = [["query", "median", "20 to 80 %", "mark", "first, second call", "memory", "bytes, scan ÷ query"]]
    for row in line["rows"]:
        scan = f"{row['bytes'] / 1e6:,.0f} MB, {row['share']:.2f}" if "bytes" in row else ""
        mark = "" if row["mark"] is None else _milliseconds(row["mark"])
        missed = "" if row["mark"] is None or row["seconds"] < row["mark"] else ", MISSED"
        found.append(
            [
                row["query"],
                _milliseconds(row["seconds"]),
                f"{_milliseconds(row['low'])} to {_milliseconds(row['high'])}",
                f"{mark}{missed}",
                f"{_milliseconds(row['first_seconds'])}, {_milliseconds(row['second_seconds'])}",
                f"{row['peak_bytes'] / 1e6:,.1f} MB",
                scan,
            ]
        )
    return found


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3g} ms" if seconds < 1 else f"{seconds:,.2f} s"


if __name__ == "__main__":
    benchmark(QUESTION, run)
