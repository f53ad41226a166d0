"""Write stores of random numbers through the store's own writer, for measurements that need no model.

Moments are those of the numbers; the model's matrices are random too. By default all numbers are independent;
`Spectrum` gives numbers whose covariances are like a model's.
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


class Spectrum:
    """Numbers whose covariance is low-rank with noise, as those of a model's heads, instead of isotropic.

    Every image has _FACTORS independent normal factors, which all heads and the embedding share. A head's output is its
    mean, plus _RANK directions made of the factors, plus noise. The variance along direction k is proportional to 1/k,
    and the noise has a tenth of the whole variance. So contributions of different heads correlate, most of a head's
    variance lies along few directions, and its mean is as long as its standard deviation.
    """

    _FACTORS, _RANK, _NOISE = 96, 32, 0.1

    def __init__(self, size: Dimensions, random: np.random.Generator) -> None:
        self._random, self._heads = random, len(size.layers) * size.heads
        self._to_heads = np.concatenate([self._mixing(size.head_dim) for _ in range(self._heads)], axis=1)
        self._to_joint = self._mixing(size.joint)
        self._head_means, self._joint_mean = self._mean(self._heads * size.head_dim), self._mean(size.joint)

    def arrays(self, shape: tuple[int, ...], joint: int) -> dict[str, np.ndarray]:
        """`heads` of `shape` [image, layer, head, head_dim], with embeddings and norms of as many images."""
        factors = self._random.standard_normal((shape[0], self._FACTORS), dtype=np.float32)
        heads = factors @ self._to_heads + self._head_means
        embedding = factors @ self._to_joint + self._joint_mean
        for numbers in (heads, embedding):
            numbers += np.float32(self._NOISE**0.5) * self._random.standard_normal(numbers.shape, dtype=np.float32)
        norm = self._random.uniform(1, 2, (shape[0], 3)).astype(np.float32)
        norm[:, 2] = np.linalg.norm(embedding, axis=1)
        return {"embedding": embedding, "norm": norm, "heads": heads.reshape(shape).astype(np.float16)}

    def _mixing(self, width: int) -> np.ndarray:
        """A matrix from factors to `width` numbers of mean variance 1 - _NOISE."""
        rank = min(self._RANK, width)
        shares = 1 / np.arange(1, rank + 1)
        sizes = np.sqrt((1 - self._NOISE) * width * shares / shares.sum())
        left, right = (np.linalg.qr(self._random.standard_normal((n, rank)))[0] for n in (self._FACTORS, width))
        return np.asarray((left * sizes) @ right.T, np.float32)

    def _mean(self, width: int) -> np.ndarray:
        return self._random.standard_normal(width, dtype=np.float32)


def write_store(
    path: Path,
    size: Dimensions,
    emit: tuple[str, ...],
    random: np.random.Generator,
    with_captions: bool = False,
    spectrum: Spectrum | None = None,
    **described: Any,
) -> None:
    """Write a finished store, with captions of nine words on request, and with numbers of `spectrum` if it is given.

    `described` are more of its attributes.
    """
    store = planned_store(path, size, emit, random, with_captions, **described)
    for unit in store.unfinished():
        moments = zero_moments(size)
        with store.begin(unit) as writer:
            for rows, arrays in unit_batches(unit, size, emit, random, spectrum):
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
    folded: Folded | None = None,
    **described: Any,
) -> StoreWriter:
    """A store without a finished unit, of random matrices if none are given; `described` are more of its attributes."""
    attributes = {"format": FORMAT, "version": "benchmark", "emit": list(emit), "dimensions": asdict(size), **described}
    with NewStore(path) as staged:
        staged.plan(_samples(size.images, random, with_captions), size.unit_images, [])
        staged.publish(
            attributes, [Shard("00000.tar", 0, size.images, None, None)], folded or random_folded(size, random)
        )
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
    unit: Unit,
    size: Dimensions,
    emit: tuple[str, ...],
    random: np.random.Generator,
    spectrum: Spectrum | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The rows of a unit and their arrays, batch by batch."""
    end = unit.first_row + unit.rows
    for first in range(unit.first_row, end, BATCH):
        rows = np.arange(first, min(first + BATCH, end))
        kept = (len(rows), len(size.layers), size.heads)
        arrays: dict[str, np.ndarray]
        if spectrum is not None:
            arrays = spectrum.arrays((*kept, size.head_dim), size.joint)
        else:
            arrays = {
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
    return Moments.zeros(len(size.layers), size.heads, size.head_dim, torch.device("cpu"), size.joint)


def add_moments(moments: Moments, arrays: dict[str, np.ndarray]) -> None:
    """Add a batch to `moments`."""
    heads, norm, embedding = (torch.from_numpy(arrays[name]) for name in ("heads", "norm", "embedding"))
    moments.add(heads.float(), norm, embedding=embedding)


def _samples(images: int, random: np.random.Generator, with_captions: bool) -> Iterator[Sample]:
    for row in range(images):
        caption = " ".join(random.choice(_CAPTION_WORDS, size=9)) if with_captions else None
        tar, member = f"{row // 10_000:05d}.tar", f"{row:09d}.jpg"
        yield Sample(row, f"{row:09d}", tar, member, 1536 * row, 30_000, caption)


def random_folded(size: Dimensions, random: np.random.Generator) -> Folded:
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
