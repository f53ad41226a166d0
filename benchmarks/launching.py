"""Measure what `precompute` costs the process that launches kernels, with a model that returns at once.

Images are decoded in worker processes, as for a tower on a GPU. Everything else of a run is done: reading the plan,
receiving spans, joining batches, contributions and moments, and writing the store. The pictures are small, because
their size matters to the workers only.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pictures import photo_like, write_shards
from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.decode.batches import Batch
from headspan.model.tower import PooledRow
from headspan.run import precompute as pipeline
from headspan.run.encoder import Encoder, prepare
from headspan.run.planning import open_planned
from headspan.shards.urls import expand, stored_names

# CPU time of the launching process for an image, over all its threads.
MARK_MICROSECONDS = 40
# As on a GPU.
_BATCH, _UNIT = 256, 16_384
_PICTURE = (160, 120)


class InstantEncoder(Encoder):
    """An encoder that returns the same numbers for every batch of a size, without touching the pixels."""

    rows: dict[int, PooledRow] = {}  # noqa: RUF012

    def __call__(self, batch: Batch) -> PooledRow:
        """Numbers of the right shapes, made once for each size of a batch."""
        images = len(batch.rows)
        if images not in self.rows:
            random = torch.Generator().manual_seed(images)
            shape = (images, len(self.layers), self.tower.trunk_heads, self.tower.head_dim)
            self.rows[images] = PooledRow(
                state=torch.randn(images, self.tower.projection.shape[0], generator=random),
                std=torch.ones(images),
                heads=torch.randn(shape, generator=random),
                patches=None,
                terms=None,
            )
        return self.rows[images]


def launching_microseconds(model: dict[str, Any], folder: Path, images: int) -> float:
    """CPU time of this process and all its threads for an image, in microseconds, once the store is planned."""
    random = np.random.default_rng(0)
    write_shards(folder / "small", [photo_like(random, *_PICTURE) for _ in range(64)], images)
    values = {**model, "shards": str(folder / "small"), "device": "cpu", "batch_size": min(_BATCH, images // 2)}
    values |= {"unit_images": min(_UNIT, images // 2), "out": str(folder / "launching.zarr")}
    settings = PrecomputeSettings.from_dict(values)
    real = prepare(settings)
    encoder = InstantEncoder(**{field.name: getattr(real, field.name) for field in fields(Encoder)})
    open_planned(settings, stored_names(expand(settings.shards)), encoder, lambda progress: None)
    with _as_on_a_gpu(encoder):
        began = _cpu_seconds()
        done = pipeline.precompute(settings)
        spent = _cpu_seconds() - began
    assert done.images == images
    return spent / images * 1e6


@contextmanager
def _as_on_a_gpu(encoder: Encoder) -> Iterator[None]:
    """Decode in processes, and use `encoder` in place of a model that is loaded."""
    before = pipeline.prepare, choice.uses_processes
    pipeline.prepare = lambda *arguments: encoder
    choice.uses_processes = lambda device: True
    try:
        yield
    finally:
        pipeline.prepare, choice.uses_processes = before


def _cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime
