"""How many bytes does a store take an image, everything counted, against dense float32 contributions?

The last 4 layers of ViT-L/14, heads only, written through the store's own writer with keys and captions;
random numbers stand for a forward pass, since the size does not depend on them.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import benchmark
from headspan.emit.moments import Moments
from headspan.emit.shares import Folded
from headspan.records import Sample, Shard
from headspan.store.schema import FORMAT, Dimensions
from headspan.store.staged import StagedStore
from headspan.store.writer import StoreWriter

QUESTION = "bytes an image"
LIMIT_BYTES = 12_000


def run(toy: bool) -> dict[str, Any]:
    """Bytes an image of a heads-only store of the last 4 layers of ViT-L/14."""
    images = 600 if toy else 32_768
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        write_store(path, images)
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    fixed = (64 * 64 * 768 + 24 * 768) * 4
    dense = 64 * 768 * 4
    return {
        "images": images,
        "bytes_an_image": round(total / images, 1),
        "of_which_model_matrices": round(fixed / images, 1),
        "limit": LIMIT_BYTES,
        "dense_float32_bytes_an_image": dense,
        "times_smaller": round(dense / (total / images), 2),
    }


def write_store(path: Path, images: int) -> None:
    """A finished store at ViT-L/14's sizes."""
    random = np.random.default_rng(0)
    size = Dimensions(
        images,
        1024,
        layers=(20, 21, 22, 23),
        all_layers=24,
        direct_layers=24,
        heads=16,
        head_dim=64,
        tokens=257,
        prefix_tokens=1,
        joint=768,
        terms=25,
    )
    attributes = {"format": FORMAT, "version": "benchmark", "emit": ["heads"], "dimensions": asdict(size)}
    folded = Folded(
        head_to_joint=np.ones((4, 16, 64, 768), np.float32),
        head_mean=np.ones((4, 16, 64), np.float32),
        bias_to_joint=np.ones((24, 768), np.float32),
        bias_mean=np.ones(24, np.float32),
        gain=np.ones(768, np.float32),
        shift=np.ones(768, np.float32),
        share_count=np.full(1, 49, np.float32),
    )
    samples = (
        Sample(row, f"{row:09d}", f"{row // 10_000:05d}.tar", f"{row:09d}.jpg", 1536 * row, 30_000, _caption(random))
        for row in range(images)
    )
    with StagedStore(path) as staged:
        staged.plan(samples, size.unit_images, [])
        staged.publish(attributes, [Shard("00000.tar", 0, images, None, None)], folded, ("heads",))
    store = StoreWriter(path)
    for unit in store.unfinished():
        writer = store.begin(unit)
        moments = Moments.zeros(4, 16, 64, torch.device("cpu"))
        for first in range(unit.first_row, unit.first_row + unit.rows, 256):
            rows = np.arange(first, min(first + 256, unit.first_row + unit.rows))
            heads = random.standard_normal((len(rows), 4, 16, 64), dtype=np.float32)
            norm = random.uniform(1, 2, (len(rows), 3)).astype(np.float32)
            moments.add(torch.from_numpy(heads), torch.from_numpy(norm))
            embedding = random.standard_normal((len(rows), 768), dtype=np.float32)
            writer.put(rows, {"embedding": embedding, "norm": norm, "heads": heads.astype(np.float16)})
        writer.commit(moments, [])
    store.finish()


def _caption(random: np.random.Generator) -> str:
    words = ("a", "dog", "on", "the", "red", "sofa", "two", "people", "near", "water", "old", "street", "photo", "of")
    return " ".join(random.choice(words, size=9))


if __name__ == "__main__":
    benchmark(QUESTION, run)
