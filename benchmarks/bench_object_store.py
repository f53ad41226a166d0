"""How fast is a store written to a bucket, against obstore's own upload of the same bytes?

Both write to one server on this machine that discards what it gets, so the network and the server take next to no time
and any other work shows. headspan's side is the writer of units: it takes batches of rows, forms the shards, sends each
as an upload in parts of 8 MiB to a staged name, and commits each unit: claim, copies within the server, records. The
peer sends the bytes of the same shards, which it has in memory, in the same objects and parts, from as many threads.
Rows are those of ViT-B/32 with all heads and patches, in random numbers, and units have the default size of a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.measure import benchmark
from headspan.decompose.formula import Folded
from headspan.decompose.moments import Moments
from headspan.io.locations import StoreURL
from headspan.io.object_store import ObjectStorage
from headspan.io.staged_upload import PART_BYTES, SENT_AT_ONCE
from headspan.run.unit_size import planned_unit_images
from headspan.shards.samples import Sample, Shard
from headspan.store.schema import FORMAT, image_bytes
from headspan.store.write.create import NewStore
from headspan.store.write.threads import writing_threads
from headspan.store.write.unit import StoreWriter

QUESTION = "writing a store to a bucket"
DUE_TO = (
    "What headspan adds to the upload is one copy of each byte into the part that is sent, since obstore sends memory "
    "without copying it; its crc32c; and some twenty small requests a unit for the claim, the copies and the records. "
    "Parts are copied into memory of parts that were sent before: memory that is new to the process costs ten times as "
    "much as the copy."
)
MARK = 0.85
_BUCKET = "s3://bucket"


@contextmanager
def sink() -> Iterator[None]:
    """Run the server, with its address and some credentials in the environment."""
    command = [sys.executable, "-m", "benchmarks.s3_sink"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{int(process.stdout.readline())}"
        environment = {
            "AWS_ENDPOINT_URL": address,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        try:
            with patch.dict(os.environ, environment):
                yield
        finally:
            process.terminate()


def planned(name: str, toy: bool, units: int, unit_images: int) -> StoreWriter:
    """A new store in the bucket with `units` units."""
    layers, heads, head_dim, tokens, joint = (2, 2, 4, 5, 8) if toy else (12, 12, 64, 50, 512)
    images = units * unit_images
    size = {
        "images": images,
        "unit_images": unit_images,
        "layers": list(range(layers)),
        "all_layers": layers,
        "direct_layers": layers,
        "heads": heads,
        "head_dim": head_dim,
        "tokens": tokens,
        "prefix_tokens": 1,
        "joint": joint,
        "terms": layers + 1,
        "through_pool": [],
        "through_pool_heads": 0,
    }
    shapes = {
        "head_to_joint": (layers, heads, head_dim, joint),
        "head_mean": (layers, heads, head_dim),
        "bias_to_joint": (layers, joint),
        "bias_mean": (layers,),
        "gain": (joint,),
        "shift": (joint,),
        "share_count": (1,),
    }
    folded = Folded(**{each: np.ones(shape, np.float32) for each, shape in shapes.items()})
    attributes = {"format": FORMAT, "version": "benchmark", "emit": ["heads", "patches"], "dimensions": size}
    path = StoreURL(f"{_BUCKET}/{name}")
    with NewStore(path) as staged:
        staged.plan((Sample(row, f"{row}", "a.tar", f"{row}.jpg", 512, 1) for row in range(images)), unit_images, [])
        assert staged.publish(attributes, [Shard("a.tar", 0, images, 9_000, 1)], folded)
    return StoreWriter(path)


def write_units(store: StoreWriter, batches: list[dict[str, np.ndarray]]) -> None:
    """Write all units of the store, of the same few batches in turn, one committed while the next is written."""
    size = store.size
    with store.writing():
        pending = []
        for unit in store.units:
            row = unit.first_row
            with store.begin(unit) as writer:
                for arrays in islice(cycle(batches), unit.rows // len(batches[0]["norm"])):
                    rows = np.arange(row, row + len(arrays["norm"]))
                    writer.put(rows, np.ones(len(rows), bool), arrays)
                    row += len(rows)
                moments = Moments.zeros(len(size.layers), size.heads, size.head_dim, torch.device("cpu"))
                pending.append(writer.commit_behind(moments, []))
        assert all(each.result() is not None for each in pending)


def upload(name: str, objects: dict[str, int], content: np.ndarray) -> None:
    """Send objects of these sizes with obstore, from as many threads as the writer has."""
    import obstore

    client = ObjectStorage(f"{_BUCKET}/{name}")._client

    def send(key: str) -> None:
        data = content[: objects[key]].data
        obstore.put(
            client,
            key,
            data,
            use_multipart=objects[key] > PART_BYTES,
            chunk_size=PART_BYTES,
            max_concurrency=SENT_AT_ONCE,
        )

    with ThreadPoolExecutor(writing_threads()) as threads:
        list(threads.map(send, objects))


def run(toy: bool) -> dict[str, Any]:
    """Both sides in turn, in each of some rounds."""
    units, unit_images, batch = (2, 8, 4) if toy else (3, planned_unit_images("cuda", ["patches"]), 32)
    rounds, random = 2 if toy else 9, np.random.default_rng(0)
    with sink():
        store = planned("first.zarr", toy, units, unit_images)
        shapes = {each: spec.shape[1:] for each, spec in store.specs.items() if each != "ok"}
        kinds = {each: store.specs[each].dtype for each in shapes}
        batches = [
            {each: random.standard_normal((batch, *shapes[each]), np.float32).astype(kinds[each]) for each in shapes}
            for _ in range(min(6, unit_images // batch))
        ]
        write_units(store, batches)
        objects = {key: each[0] for record in store.commits.records() for key, each in record.files.items()}
        content = random.integers(0, 256, max(objects.values()), dtype=np.uint8)
        upload("first", objects, content)
        times: dict[str, list[tuple[float, float]]] = {"headspan": [], "obstore": []}
        for number in range(rounds):
            store = planned(f"{number}.zarr", toy, units, unit_images)
            for side, work in (
                ("headspan", partial(write_units, store, batches)),
                ("obstore", partial(upload, str(number), objects, content)),
            ):
                began, used = time.perf_counter(), time.process_time()
                work()
                times[side].append((time.perf_counter() - began, time.process_time() - used))
    total = sum(objects.values())
    seconds = {side: float(np.median([wall for wall, _ in each])) for side, each in times.items()}
    cpu = {side: float(np.median([used for _, used in each])) for side, each in times.items()}
    ratios = [peer[0] / mine[0] for mine, peer in zip(times["headspan"], times["obstore"], strict=True)]
    return {
        "megabytes": round(total / 1e6, 1),
        "image_bytes": image_bytes(store.specs),
        "objects": len(objects),
        "units": units,
        "threads": writing_threads(),
        **{f"{side}_mb_s": round(total / 1e6 / seconds[side], 1) for side in times},
        **{f"{side}_cpu_seconds": float(f"{cpu[side]:.3g}") for side in times},
        "ratios": [round(ratio, 3) for ratio in ratios],
        "ratio": round(float(np.median(ratios)), 3),
        "mark": MARK,
    }


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row a side, and the ratio."""
    return [
        ["writer", "throughput", "CPU seconds of the client", "ratio"],
        [
            f"headspan, {line['units']} units, {line['megabytes']:,.0f} MB",
            f"{line['headspan_mb_s']:,.0f} MB/s",
            f"{line['headspan_cpu_seconds']:.2g}",
            f"{line['ratio']:.2f}",
        ],
        [
            "obstore, the same objects and parts",
            f"{line['obstore_mb_s']:,.0f} MB/s",
            f"{line['obstore_cpu_seconds']:.2g}",
            "1",
        ],
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
