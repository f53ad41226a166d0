"""Write stores of random numbers through the store's own writer, for measurements that need no model.

Moments are those of the numbers; the model's matrices are random too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headspan.decompose.formula import Folded
from headspan.decompose.moments import Moments
from headspan.io.local import LocalStorage
from headspan.shards.samples import BadImage, Sample, Shard, Unit
from headspan.store.array_spec import ArraySpec
from headspan.store.commit_records import COMPLETE, UnitRecord, group_key, group_of
from headspan.store.schema import FORMAT, Dimensions
from headspan.store.write.create import NewStore
from headspan.store.write.shard import ShardPieces
from headspan.store.write.unit import StoreWriter

# Rows written at once, like a run's batches.
BATCH = 256
_CAPTION_WORDS = ("a", "dog", "on", "the", "red", "sofa", "two", "people", "near", "water", "old", "street", "photo")


def write_store(
    path: Path, size: Dimensions, emit: tuple[str, ...], random: np.random.Generator, with_captions: bool = False
) -> None:
    """Write a finished store, with captions of nine words on request."""
    store = planned_store(path, size, emit, random, with_captions)
    for unit in store.unfinished():
        moments = zero_moments(size)
        with store.begin(unit) as writer:
            for rows, arrays in unit_batches(unit, size, emit, random):
                add_moments(moments, arrays)
                writer.put(rows, np.ones(len(rows), bool), arrays)
            writer.commit(moments, [])
    store.finish()


def planned_store(
    path: Path,
    size: Dimensions,
    emit: tuple[str, ...],
    random: np.random.Generator,
    with_captions: bool = False,
    **described: Any,
) -> StoreWriter:
    """A store without a finished unit; `described` are more of its attributes."""
    attributes = {"format": FORMAT, "version": "benchmark", "emit": list(emit), "dimensions": asdict(size), **described}
    with NewStore(path) as staged:
        staged.plan(_samples(size.images, random, with_captions), size.unit_images, [])
        staged.publish(attributes, [Shard("00000.tar", 0, size.images, None, None)], _folded(size, random))
    return StoreWriter(path)


def sparse_store(path: Path, size: Dimensions, random: np.random.Generator, bad_every: int, **described: Any) -> None:
    """Write a finished store of `heads` without numbers: of its arrays only `ok` has shards; the others read as NaN.

    One image in `bad_every` is bad. `described` are more of the store's attributes.
    """
    store = planned_store(path, size, ("heads",), random, **described)
    spec, storage = store.specs["ok"], LocalStorage(path)
    records: dict[int, list[UnitRecord]] = {}
    for unit in store.units:
        rows = np.arange(unit.first_row, unit.first_row + unit.rows)
        bad = [BadImage(row, f"{row:09d}", "00000.tar", "truncated") for row in rows[rows % bad_every == 0].tolist()]
        files = {}
        for first in range(unit.first_row, unit.first_row + unit.rows, spec.shard[0]):
            ok = (rows[first - unit.first_row :][: spec.shard[0]] % bad_every != 0).astype(np.uint8)
            _write_shard(path / spec.file(first), spec, first, ok)
            files[spec.file(first)] = storage.checksum(spec.file(first))
        record = UnitRecord(unit.index, unit.first_row, unit.rows, unit.rows - len(bad), files, bad, 0)
        records.setdefault(group_of(unit.index), []).append(record)
    for group, units in records.items():
        text = json.dumps([asdict(record) for record in units])
        (path / group_key(group)).parent.mkdir(parents=True, exist_ok=True)
        (path / group_key(group)).write_text(text, encoding="utf-8")
    (path / COMPLETE).write_text("{}", encoding="utf-8")


def _write_shard(file: Path, spec: ArraySpec, first_row: int, values: np.ndarray) -> None:
    """Write one shard of an array, without making it durable."""
    parts: list[bytes] = []
    pieces = ShardPieces(spec, first_row, lambda part: parts.append(bytes(part)))
    pieces.put(first_row, values)
    pieces.end()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(parts))


def unit_batches(
    unit: Unit, size: Dimensions, emit: tuple[str, ...], random: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The rows of a unit and their arrays, batch by batch."""
    end = unit.first_row + unit.rows
    for first in range(unit.first_row, end, BATCH):
        rows = np.arange(first, min(first + BATCH, end))
        kept = (len(rows), len(size.layers), size.heads)
        arrays: dict[str, np.ndarray] = {
            "embedding": random.standard_normal((len(rows), size.joint), dtype=np.float32),
            "norm": random.uniform(1, 2, (len(rows), 3)).astype(np.float32),
            "heads": random.standard_normal((*kept, size.head_dim), dtype=np.float32).astype(np.float16),
        }
        if "patches" in emit:
            tail = (size.tokens, size.head_dim)
            arrays["patches"] = random.standard_normal((*kept, *tail), dtype=np.float32).astype(np.float16)
        yield rows, arrays


def zero_moments(size: Dimensions) -> Moments:
    """Moments of no image."""
    return Moments.zeros(len(size.layers), size.heads, size.head_dim, torch.device("cpu"))


def add_moments(moments: Moments, arrays: dict[str, np.ndarray]) -> None:
    """Add a batch to `moments`."""
    moments.add(torch.from_numpy(arrays["heads"].astype(np.float32)), torch.from_numpy(arrays["norm"]))


def _samples(images: int, random: np.random.Generator, with_captions: bool) -> Iterator[Sample]:
    for row in range(images):
        caption = " ".join(random.choice(_CAPTION_WORDS, size=9)) if with_captions else None
        tar, member = f"{row // 10_000:05d}.tar", f"{row:09d}.jpg"
        yield Sample(row, f"{row:09d}", tar, member, 1536 * row, 30_000, caption)


def _folded(size: Dimensions, random: np.random.Generator) -> Folded:
    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    kept = (len(size.layers), size.heads, size.head_dim)
    return Folded(
        head_to_joint=draw(*kept, size.joint),
        head_mean=draw(*kept),
        bias_to_joint=draw(size.direct_layers, size.joint),
        bias_mean=draw(size.direct_layers),
        gain=draw(size.joint),
        shift=draw(size.joint),
        share_count=np.full(1, size.terms + size.direct_layers, np.float32),
    )
