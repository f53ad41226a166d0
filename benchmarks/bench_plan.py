"""What does a plan of many images take: seconds, memory and bytes, and how long does the store take to open?

The tables of samples come from an index that is made here, as the processes that read tars hand them over: tars of
10,000 images with keys, offsets, sizes and captions. headspan's own code divides them into units and writes the plan of
a store. Reading tars is measured apart, over tars of small images, by as many processes as there are cores.
"""

from __future__ import annotations

import io
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import headspan as hs
from benchmarks.bench_scheduling import ATTRIBUTES, SIZE, toy_matrices
from benchmarks.measure import benchmark
from benchmarks.memory import growth
from headspan.events import ignore
from headspan.io.cores import cores
from headspan.member_names import MemberNames
from headspan.run.plan_ahead import begun_plan
from headspan.shards.samples import Shard
from headspan.shards.urls import stored_names
from headspan.store.tables import SAMPLES, read_unit
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter

QUESTION = "planning a store of many images"
DUE_TO = (
    "A unit of 16,384 images and one tar are in memory at a time, beside the list of shards. An open store reads none "
    "of the tables of samples."
)
_UNIT_IMAGES, _TAR_IMAGES = 16_384, 10_000
_CAPTION = b"ten words that say what can be seen in an image"
# Words of captions, and different captions.
_WORDS, _CAPTIONS = 10, 1 << 16


def captions(random: np.random.Generator) -> pa.Array:
    """Different captions of ten words."""
    words = np.array([f"word{number}" for number in range(20_000)])
    return pa.array([" ".join(words[random.zipf(1.3, _WORDS) % len(words)]) for _ in range(_CAPTIONS)])


def index(images: int) -> Iterator[tuple[Shard, pa.Table]]:
    """Tars, each with the table of its samples."""
    random = np.random.default_rng(0)
    known = captions(random)
    for first in range(0, images, _TAR_IMAGES):
        count = min(_TAR_IMAGES, images - first)
        url = f"data/{first // _TAR_IMAGES:06d}.tar"
        keys = pc.cast(pa.array(np.arange(first, first + count)), pa.string())
        sizes = random.integers(20_000, 90_000, count)
        columns = {
            "row": pa.array(np.arange(count)),
            "key": keys,
            "url": pa.array([url] * count),
            "member": pc.binary_join_element_wise(keys, "jpg", "."),
            "offset": pa.array(np.cumsum(sizes)),
            "size_bytes": pa.array(sizes),
            "caption": known.take(pa.array(random.integers(0, len(known), count))),
            "label": pa.nulls(count, pa.int64()),
            "metadata": pa.nulls(count, pa.string()),
        }
        yield Shard(url, first, count, int(sizes.sum()), 1), pa.table(columns, schema=SAMPLES)


def written(folder: Path, images: int) -> dict[str, Any]:
    """What it takes to write the plan of so many images, and to open it."""
    path, shards, making = folder / f"{images}.zarr", list[Shard](), 0.0

    def tables() -> Iterator[pa.Table]:
        nonlocal making
        made = index(images)
        while True:
            began = time.process_time()
            found = next(made, None)
            making += time.process_time() - began
            if found is None:
                return
            shards.append(found[0])
            yield found[1]

    began = time.process_time()
    with growth() as grown, NewStore(path) as staged:
        assert staged.plan_tables(tables(), _UNIT_IMAGES, []) == images
        attributes = {**ATTRIBUTES, "dimensions": dict(SIZE, images=images, unit_images=_UNIT_IMAGES)}
        assert staged.publish(attributes, shards, toy_matrices())
    seconds = time.process_time() - began - making
    opening = {}
    for name, work in (
        ("open", lambda: hs.open(path, include_failed=True)),
        ("writer", lambda: StoreWriter(path).unfinished()),
        ("last unit", lambda: list(read_unit(path, (images - 1) // _UNIT_IMAGES))),
    ):
        began = time.perf_counter()
        with growth() as opened:
            work()
        opening[name] = {"seconds": time.perf_counter() - began, "bytes": opened()}
    size = sum(file.stat().st_size for file in (path / "records").rglob("*") if file.is_file())
    return {
        "images": images,
        "cpu_seconds": seconds,
        "seconds_per_million": 1e6 * seconds / images,
        "bytes": grown(),
        "disk_bytes": size,
        "opening": opening,
    }


def read(folder: Path, tars: int, images: int) -> dict[str, Any]:
    """What it takes to read the headers and captions of tars."""
    names = []
    for number in range(tars):
        names.append(str(folder / f"{number:05d}.tar"))
        with tarfile.open(names[-1], "w") as tar:
            for image in range(number * images, (number + 1) * images):
                for extension, data in (("jpg", bytes(300)), ("txt", _CAPTION)):
                    member = tarfile.TarInfo(f"{image:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    with begun_plan(folder / "read.zarr", stored_names(names), _UNIT_IMAGES, MemberNames()) as plan:
        assert plan is not None
        found = plan.result(ignore)
        assert found is not None
        assert found.images == tars * images
    now = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(used, now, strict=True))
    return {"tars": tars, "images": tars * images, "processes": cores(), "cpu_seconds": seconds}


def run(toy: bool) -> dict[str, Any]:
    """Plans of several sizes; of another one too, if PLANNED_IMAGES names it."""
    more = [int(number) for number in os.environ.get("PLANNED_IMAGES", "").split()]
    sizes = (3_000, 20_000) if toy else (1_000_000, 10_000_000, *more)
    with tempfile.TemporaryDirectory() as folder:
        reading = read(Path(folder), *((64, 3) if toy else (128, 1000)))
        plans = []
        for images in sizes:
            with tempfile.TemporaryDirectory() as place:
                plans.append(written(Path(place), images))
    return {"plans": plans, "reading": reading}


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row a plan."""
    rows = [["images", "CPU seconds a million", "memory", "bytes an image", "opening: store, writer", "reading a unit"]]
    for plan in line["plans"]:
        open_, writer, unit = (plan["opening"][name] for name in ("open", "writer", "last unit"))
        rows.append(
            [
                f"{plan['images']:,}",
                f"{plan['seconds_per_million']:.2f}",
                f"{plan['bytes'] / 1e6:,.0f} MB",
                f"{plan['disk_bytes'] / plan['images']:.0f}",
                f"{open_['seconds'] * 1e3:.0f} ms, {writer['seconds'] * 1e3:.0f} ms",
                f"{unit['seconds'] * 1e3:.0f} ms",
            ]
        )
    reading = line["reading"]
    seconds = 1e6 * reading["cpu_seconds"] / reading["images"]
    return [*rows, [f"reading {reading['tars']} tars with captions", f"{seconds:.1f}", "", "", "", ""]]


if __name__ == "__main__":
    benchmark(QUESTION, run)
