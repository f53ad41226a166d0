"""How many bytes does a store take an image, everything counted, against dense float32 contributions?

The last 4 layers of ViT-L/14, heads only, written through the store's own writer with keys and captions; random
numbers stand for a forward pass, since the size does not depend on them. Beside it, for four models, the bytes of
the arrays with a row an image, counted on disk, for heads and for heads and patches of the last 4 layers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import Sizes
from benchmarks.measure import benchmark
from benchmarks.models import MODELS, store_size
from benchmarks.random_store import write_store

QUESTION = "bytes an image"
LIMIT_BYTES = 12_000
# Images of a store of which the arrays alone are counted.
_FEW = 8


def run(toy: bool) -> dict[str, Any]:
    """Bytes an image of a heads-only store of the last 4 layers of ViT-L/14, and of the arrays of every model."""
    images = 600 if toy else 32_768
    size = MODELS["ViT-L-14"]
    random = np.random.default_rng()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        write_store(path, store_size(size, images, 1024, 4), ("heads",), random, with_captions=True)
        total = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    fixed = (4 * size.width * size.joint + size.layers * size.joint) * 4
    dense = dense_bytes(size, 4, "heads")
    return {
        "images": images,
        "bytes_an_image": round(total / images, 1),
        "of_which_model_matrices": round(fixed / images, 1),
        "limit": LIMIT_BYTES,
        "dense_float32_bytes_an_image": dense,
        "times_smaller": round(dense / (total / images), 2),
        "models": {name: _of_model(each, random) for name, each in MODELS.items() if not toy or name == "ViT-B-32"},
    }


def _of_model(size: Sizes, random: np.random.Generator) -> dict[str, Any]:
    found = {}
    for emit in (("heads",), ("heads", "patches")):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.zarr"
            write_store(path, store_size(size, _FEW, _FEW, 4), emit, random)
            total = sum(
                file.stat().st_size
                for array in ("ok", "embedding", "norm", *emit)
                for file in (path / array / "c").rglob("*")
                if file.is_file()
            )
        dense = dense_bytes(size, 4, emit[-1])
        found[emit[-1]] = {
            "bytes_an_image": round(total / _FEW),
            "dense_float32_bytes_an_image": dense,
            "times_smaller": round(dense / (total / _FEW), 2),
        }
    return found


def dense_bytes(size: Sizes, layers: int, form: str) -> int:
    """Bytes an image of float32 contributions in joint space, of heads, or of every token through every head."""
    return 4 * layers * size.heads * size.joint * (size.tokens if form == "patches" else 1)


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: bytes, and how many dense ones would be."""
    factors = "; ".join(
        f"{name}: heads {row['heads']['times_smaller']:.0f}×, patches {row['patches']['times_smaller']:.0f}×"
        for name, row in line.get("models", {}).items()
    )
    return (
        f"{line['bytes_an_image']:,.0f} (last 4 layers of ViT-L/14, {line['images']:,} images, everything counted)",
        f"dense float32 contributions of the same heads: {line['dense_float32_bytes_an_image']:,}, "
        f"so {line['times_smaller']:.1f}× larger" + (f"; by arrays, {factors}" if factors else ""),
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
