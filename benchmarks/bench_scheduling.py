"""What do scheduling, records and planning cost in a run of 400 million images by 256 workers?

The run is simulated: 100,000 units, a bucket in memory that counts requests, and workers whose encoder does nothing.
All the rest is headspan's own code: the scheduler, the workers' leases, the claims, the records and their groups. The
workers take turns in one process by a clock of the simulation. Each tenth of the run is measured apart, so that what
grows with the number of finished units shows. Arrays are left out: their requests do not depend on the run's size.
The same run, smaller, goes over a local folder. A plan of many shards is written and opened.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import headspan as hs
from benchmarks.counted_bucket import Bucket, CountedStorage
from benchmarks.measure import benchmark
from benchmarks.simulated_run import SimulatedStore, simulate, steps_of
from headspan.decompose.formula import Folded
from headspan.io.local import LocalStorage
from headspan.io.storage import Storage
from headspan.run.scheduler import Scheduler
from headspan.shards.plan import units
from headspan.shards.samples import Sample, Shard, Unit
from headspan.store.commit_records import CommitRecords, UnitRecord, beside, group_key
from headspan.store.contents import LARGE_UNITS
from headspan.store.moments_file import MergedMoments, pack
from headspan.store.schema import FORMAT
from headspan.store.tables import sample_files
from headspan.store.write.create import NewStore
from headspan.store.write.unit import StoreWriter

QUESTION = "scheduling and records of a simulated run of many workers"
DUE_TO = (
    "A worker lists the records of 64 units at once and reserves each unit by one put, so what is finished does not "
    "count. A worker that joins reads one listing and one note. In the last tenth, workers share what is left: half of "
    "a group at a time, each for two listings."
)
IMAGES, UNITS, WORKERS = 400_000_000, 100_000, 256
_LOCAL_UNITS, _LOCAL_WORKERS = 4_096, 8
_AXES = {"ok": 0, "embedding": 1, "norm": 1, "heads": 3}
SIZE = {
    "layers": [0],
    "all_layers": 1,
    "direct_layers": 1,
    "heads": 1,
    "head_dim": 2,
    "tokens": 2,
    "prefix_tokens": 1,
    "joint": 3,
    "terms": 2,
    "through_pool": [],
    "through_pool_heads": 0,
}
ATTRIBUTES = {
    "format": FORMAT,
    "version": "simulated",
    "model": "none",
    "weights_sha256": "00",
    "precision": "fp32",
    "emit": ["heads"],
}


def _reading(storage: Storage, planned: list[Unit]) -> dict[str, Any]:
    """What it costs to read which units are finished, and all records."""
    commits = CommitRecords(storage, len(planned))
    found: dict[str, Any] = {}
    for name, work in (("listing", commits.done), ("records", commits.records)):
        began = time.process_time()
        work()
        found[f"{name}_seconds"] = time.process_time() - began
    return found


def _worker_bytes(bucket: Bucket, planned: list[Unit]) -> int:
    """The most memory that a worker's scheduling takes, besides the list of units."""
    tracemalloc.start()
    try:
        with Scheduler(SimulatedStore(CountedStorage(bucket, "f" * 8), planned)) as scheduler:
            for _ in steps_of(scheduler):
                pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def toy_matrices() -> Folded:
    """The matrices of a model of SIZE."""
    ones = {
        "head_to_joint": (1, 1, 2, 3),
        "head_mean": (1, 1, 2),
        "bias_to_joint": (1, 3),
        "bias_mean": (1,),
        "gain": (3,),
        "shift": (3,),
        "share_count": (1,),
    }
    return Folded(**{name: np.ones(shape, np.float32) for name, shape in ones.items()})


def _opening(path: Path, images: int, count: int) -> dict[str, Any]:
    """What it costs to open a complete store of so many units, from its files in the system's cache."""
    unit_images = -(-images // count)
    size = dict(SIZE, images=images, unit_images=unit_images)
    attributes = {**ATTRIBUTES, "dimensions": size}
    with NewStore(path) as staged:
        staged.plan([Sample(0, "0", "a.tar", "0.png", 512, 1)], unit_images, [])
        # Opening reads none of the tables.
        for name in sample_files(count):
            (staged.folder / name).touch()
        assert staged.publish(attributes, [Shard("a.tar", 0, images, 1, 1)], toy_matrices())
    planned = units(images, unit_images)
    count = len(planned)
    commits = CommitRecords(LocalStorage(path), count)
    for group in commits.groups:
        records = [
            UnitRecord(
                unit.index,
                unit.first_row,
                unit.rows,
                unit.rows,
                {f"{name}/c/{unit.index}{'/0' * axes}": (unit.rows, 1) for name, axes in _AXES.items()},
                [],
                1,
            )
            for unit in (planned[index] for index in commits.units_of(group))
        ]
        (path / group_key(group)).write_text(json.dumps([asdict(record) for record in records]))
        rows = sum(record.rows for record in records)
        moments = MergedMoments(rows, np.ones((1, 1, 5)), np.ones((1, 1, 5, 5)))
        (path / beside(group_key(group), "moments")).write_bytes(pack(moments))
    began = time.process_time()
    StoreWriter(path).finish()
    finishing = time.process_time() - began
    seconds = {}
    for name, work in (
        ("open", lambda: hs.open(path)),
        ("count", lambda: hs.open(path).images),
        ("moments", lambda: hs.open(path).moments()),
        ("records", lambda: hs.open(path).contents.records),
    ):
        began = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - began
    tracemalloc.start()
    store = hs.open(path)
    assert store.images == images
    opened = tracemalloc.get_traced_memory()[1]
    assert len(store.contents.records) == count
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "images": images,
        "units": count,
        "finishing_seconds": finishing,
        "seconds": seconds,
        "bytes": opened,
        "records_bytes": read,
    }


def run(toy: bool) -> dict[str, Any]:
    """Milliseconds of one core and requests for each unit handed out and committed, by tenths of the run."""
    count, workers, images = (200, 5, 800_000) if toy else (UNITS, WORKERS, IMAGES)
    bucket, planned = Bucket(), units(images, images // count)
    storages = [CountedStorage(bucket, f"{number:08x}") for number in range(workers)]
    whole = simulate(planned, storages, bucket)
    found = {
        "bucket": {
            **whole,
            "requests_by_kind": {kind: total / count for kind, total in sorted(bucket.requests.items())},
            "objects_bytes": bucket.size_bytes,
            "worker_bytes": _worker_bytes(bucket, planned),
            "reading": _reading(CountedStorage(bucket, "e" * 8), planned),
        }
    }
    few, here = (40, 3) if toy else (_LOCAL_UNITS, _LOCAL_WORKERS)
    with tempfile.TemporaryDirectory() as folder:
        storage = [LocalStorage(Path(folder)) for _ in range(here)]
        found["folder"] = simulate(units(images, -(-images // few)), storage, None)
        found["opening"] = _opening(Path(folder) / "run.zarr", images, max(count, 2 * LARGE_UNITS))
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each part of the simulated run, and one for opening its store."""
    bucket, folder, opening = line["bucket"], line["folder"], line["opening"]

    def row(name: str, tenths: Sequence[Mapping[str, float]]) -> list[str]:
        figures = [
            [float(tenth[f"{what}_{unit}"]) for tenth in tenths]
            for what in ("choosing", "committing")
            for unit in ("ms", "requests")
        ]
        return [name, *(" to ".join(dict.fromkeys(f"{each:.1f}" for each in (min(of), max(of)))) for of in figures)]

    tenths, run_of = bucket["tenths"], f"bucket, {bucket['units']:,} units, {bucket['workers']} workers"
    rows = [
        ["part of the run", "choosing a unit, ms", "requests", "its records, ms", "requests"],
        row(f"{run_of}: first tenth", tenths[:1]),
        row("second to ninth tenth", tenths[1:-1]),
        row("last tenth", tenths[-1:]),
        row(f"folder, {folder['units']:,} units, {folder['workers']} workers: all tenths", folder["tenths"]),
    ]
    opened = f"{opening['seconds']['open']:.2f} s, {opening['bytes'] / 1e6:.1f} MB"
    return [
        *rows,
        [f"opening the store of {opening['images']:,} images in {opening['units']:,} units", opened, "", "", ""],
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
