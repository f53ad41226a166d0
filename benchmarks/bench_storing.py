"""How much of a run that stores all patches does the model's thread spend on storing?

`precompute --emit heads patches`, all layers, float32, from JPEG shards to a finished store, with the default settings.
The thread hands arrays over to the writing threads, and waits only if too many bytes wait. The share is the summary's
seconds in storing divided by its seconds in total; loading the model is not part of them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import benchmark
from benchmarks.pictures import photo_like, write_shards
from headspan.config import PrecomputeSettings
from headspan.run.precompute import precompute
from headspan.store.schema import image_bytes
from headspan.store.write.unit import StoreWriter

QUESTION = "storing patches while computing"
DUE_TO = (
    "Other threads copy, checksum and write the arrays, patches without a copy, and a unit is committed while the next "
    "one is computed."
)
# The most of the run that the model's thread may spend on storing.
MARK = 0.05


def run(toy: bool) -> dict[str, Any]:
    """The share of each run, the median of the shares, and how much was written."""
    images = 12 if toy else 768
    shares, seconds = [], []
    with tempfile.TemporaryDirectory() as name:
        folder, random = Path(name), np.random.default_rng()
        write_shards(folder / "shards", [photo_like(random, 500, 375) for _ in range(min(images, 64))], images)
        model = {"model": "reference"} if toy else {"model": "ViT-B-32", "pretrained": "random:0"}
        settings = {"shards": str(folder / "shards"), "emit": ("heads", "patches"), "layers": "all", "device": "cpu"}
        for number in range(2 if toy else 3):
            out = folder / f"{number}.zarr"
            summary = precompute(PrecomputeSettings.from_dict({**settings, **model, "out": str(out)}))
            seconds.append(summary.seconds)
            shares.append(summary.seconds["storing"] / summary.seconds["total"])
        store = StoreWriter(out)
    middle = seconds[shares.index(sorted(shares)[len(shares) // 2])]
    return {
        "model": model["model"],
        "images": images,
        "image_bytes": image_bytes(store.specs),
        "unit_images": store.size.unit_images,
        "threads": torch.get_num_threads(),
        **{f"{stage}_seconds": float(f"{middle[stage]:.4g}") for stage in ("total", "model", "storing", "writing")},
        "shares": [round(share, 4) for share in shares],
        "share": round(float(np.median(shares)), 4),
        "mark": MARK,
    }


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row: what was stored, the seconds of the stages, and the share."""
    return [
        ["run", "whole run", "storing (model's thread)", "writing (other threads)", "storing ÷ whole run"],
        [
            f"{line['model']}, {line['images']:,} images, {line['image_bytes'] / 1e6:.2g} MB each",
            f"{line['total_seconds']:.1f} s",
            f"{line['storing_seconds']:.2g} s",
            f"{line['writing_seconds']:.2g} s",
            f"{line['share']:.2g}",
        ],
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
