"""Measure what `precompute` costs the process that launches kernels, with a model that returns at once.

Images are decoded in worker processes, as for a tower on a GPU, and everything that a CPU does in such a run is done:
reading the plan, receiving spans, joining batches, launching, and writing the store. What the GPU would compute is
computed for one image of each batch: so its launch is counted, but not its arithmetic. The pictures are small, because
their size matters to the workers only.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pictures import photo_like, write_shards
from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.decode.batches import Batch, DecodedSpan, rebatch
from headspan.decompose.contributions import Contributions, contributions
from headspan.events import ignore
from headspan.model.tower import PooledRow
from headspan.run import precompute as pipeline
from headspan.run.defaults import resolved
from headspan.run.encoder import Encoder, prepare
from headspan.run.plan_ahead import begun_plan
from headspan.run.planning import open_planned
from headspan.shards.urls import expand, stored_names

# CPU time of the launching process for an image, over all its threads.
MARK_MICROSECONDS = 40
# As on a GPU.
_BATCH, _UNIT = 256, 16_384
_PICTURE = (160, 120)


class InstantEncoder(Encoder):
    """An encoder that reads no pixels, and returns the same numbers of one image for every batch."""

    __hash__ = object.__hash__

    def __call__(self, batch: Batch) -> PooledRow:
        """Numbers of the right shapes."""
        return _row(self, 1)


@cache
def _row(encoder: Encoder, images: int) -> PooledRow:
    random = torch.Generator().manual_seed(images)
    shape = (images, len(encoder.layers), encoder.tower.trunk_heads, encoder.tower.head_dim)
    return PooledRow(
        state=torch.randn(images, encoder.tower.projection.shape[0], generator=random),
        std=torch.ones(images),
        heads=torch.randn(shape, generator=random),
        patches=None,
        terms=None,
    )


def launching_microseconds(model: dict[str, Any], folder: Path, images: int) -> float:
    """CPU time of this process and all its threads for an image, in microseconds, once the store is planned.

    It is the difference of two runs, of `images` images and of a quarter of them, for each image of the difference: so
    what a run needs once is not counted.
    """
    random = np.random.default_rng(0)
    pictures = [photo_like(random, *_PICTURE) for _ in range(64)]
    few = images // 4
    # The first run imports what every run needs.
    _run_seconds(model, folder, pictures, few // 4)
    spent = _run_seconds(model, folder, pictures, images) - _run_seconds(model, folder, pictures, few)
    return spent / (images - few) * 1e6


def _run_seconds(model: dict[str, Any], folder: Path, pictures: list[bytes], images: int) -> float:
    shards = folder / f"{images}-images"
    write_shards(shards, pictures, images)
    values = {**model, "shards": str(shards), "device": "cpu", "batch_size": min(_BATCH, images // 2)}
    values |= {"unit_images": min(_UNIT, images // 2), "out": str(folder / f"{images}.zarr")}
    settings = PrecomputeSettings.from_dict(values)
    real = prepare(settings)
    encoder = InstantEncoder(**{field.name: getattr(real, field.name) for field in fields(Encoder)})
    urls = stored_names(expand(settings.shards))
    with begun_plan(Path(settings.out), urls, values["unit_images"], settings.member_names) as plan:
        open_planned(resolved(settings, real), urls, encoder, plan, ignore)
    with _as_on_a_gpu(encoder):
        began = _cpu_seconds()
        done = pipeline.precompute(settings)
        spent = _cpu_seconds() - began
    assert done.images == images
    return spent


@contextmanager
def _as_on_a_gpu(encoder: Encoder) -> Iterator[None]:
    """Decode in processes, use `encoder` in place of a model that is loaded, and leave a GPU's arithmetic out."""
    batches = [0]
    threads = torch.get_num_threads()
    # Tensors of one image need one thread; others would only wait for work, and their waiting takes time too.
    torch.set_num_threads(1)

    @cache
    def numbers(images: int) -> Contributions:
        """A batch's numbers on the host, as a GPU's copies would have brought them there."""
        return contributions(_row(encoder, images), encoder.tower)

    def launched(row: PooledRow, *arguments: Any) -> Contributions:
        return replace(contributions(row, *arguments), transfer=numbers(batches[-1]).transfer)

    def joined(spans: Iterator[DecodedSpan], size: int) -> Iterator[Batch]:
        for batch in rebatch(spans, size):
            batches[-1] = len(batch.rows)
            yield batch

    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        for owner, name, value in (
            (pipeline, "prepare", lambda *arguments: encoder),
            (pipeline, "contributions", launched),
            (pipeline, "rebatch", joined),
            (choice, "uses_processes", lambda device: True),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def _cpu_seconds() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime
