"""How many bytes does a store take for an image, against dense contributions of the same type?

The last 4 layers of ViT-L/14, heads only, written through the store's own writer with keys and captions. The numbers
are random, since the size does not depend on them. The table also gives, for four models, the bytes on disk of the
arrays that have one row per image: for heads, and for heads and patches, of the last 4 layers. Stored numbers are
float16, so the factor compares them with dense float16. Dense float32, which published code stores, is given too.
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

QUESTION = "bytes an image, at equal type"
DUE_TO = (
    "A store holds a head's own `head_dim` numbers instead of `joint` numbers, which is exact. Against float32, a "
    "factor of 2 comes from the type. The store's bytes include embeddings, norms, keys, captions, moments and the "
    "model's matrices."
)
LIMIT_BYTES = 12_000
# As many images as ImageNet's validation set has, over which the published studies run.
IMAGES = 50_000
UNIT_IMAGES = 1024
# Images of a store of which only the arrays are counted.
_FEW = 8
_FLOAT16_BYTES, _FLOAT32_BYTES = 2, 4


def run(toy: bool) -> dict[str, Any]:
    """Bytes an image of a heads-only store of the last 4 layers of ViT-L/14, and of the arrays of every model."""
    images = 600 if toy else IMAGES
    size = MODELS["ViT-L-14"]
    random = np.random.default_rng()
    total = whole_bytes(images, random)
    fixed = (4 * size.width * size.joint + size.layers * size.joint) * 4
    return {
        "images": images,
        "bytes_an_image": round(total / images, 1),
        "of_which_model_matrices": round(fixed / images, 1),
        "limit": LIMIT_BYTES,
        **_against_dense(total / images, size, "heads"),
        "models": {name: _of_model(each, random) for name, each in MODELS.items() if not toy or name == "ViT-B-32"},
    }


def whole_bytes(images: int, random: np.random.Generator) -> int:
    """Bytes of a heads-only store of the last 4 layers of ViT-L/14, everything counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.zarr"
        sizes = store_size(MODELS["ViT-L-14"], images, UNIT_IMAGES, 4)
        write_store(path, sizes, ("heads",), random, with_captions=True)
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _against_dense(bytes_an_image: float, size: Sizes, form: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, item_bytes in (("float16", _FLOAT16_BYTES), ("float32", _FLOAT32_BYTES)):
        dense = dense_bytes(size, 4, form, item_bytes)
        found[f"dense_{kind}_bytes_an_image"] = dense
        found[f"times_smaller_than_{kind}"] = round(dense / bytes_an_image, 2)
    return found


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
        found[emit[-1]] = {"bytes_an_image": round(total / _FEW), **_against_dense(total / _FEW, size, emit[-1])}
    return found


def dense_bytes(size: Sizes, layers: int, form: str, item_bytes: int) -> int:
    """Bytes an image of dense contributions in joint space: of heads, or of every token through every head."""
    return item_bytes * layers * size.heads * size.joint * (size.tokens if form == "patches" else 1)


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for the whole store, and for the arrays of each model and form."""
    whole = f"ViT-L-14, heads, everything counted ({line['images']:,} images)"
    rows = [(whole, line)]
    for name, forms in line["models"].items():
        rows += [(f"{name}, {form}, arrays alone", row) for form, row in forms.items()]
    return [
        ["last 4 layers", "bytes an image", "dense float16", "dense float32"],
        *(
            [
                name,
                f"{row['bytes_an_image']:,.0f}",
                *(
                    f"{row[f'dense_{kind}_bytes_an_image']:,} ({row[f'times_smaller_than_{kind}']:.1f}×)"
                    for kind in ("float16", "float32")
                ),
            ]
            for name, row in rows
        ),
    ]


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: bytes, and how many dense ones would be."""
    return (
        f"{line['bytes_an_image'] / 1e3:.1f} kB an image (heads of 4 layers of ViT-L/14, everything counted)",
        f"dense float16 contributions: {line['times_smaller_than_float16']:.1f}× as many bytes; float32: "
        f"{line['times_smaller_than_float32']:.1f}×",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
