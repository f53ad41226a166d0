"""How long does the direct effect of every head alone on zero-shot classification take, against dense contributions?

384 heads of 64 dimensions in a joint space of 768, 50,000 images, 1,000 classes: a store of all layers of ViT-L/14 over
ImageNet's validation images. Its random numbers are made so that three in four images are named correctly, with margins
like a model's ([classified_store.py](classified_store.py)). The store is open, and its files are in the page cache. The
time is that of `hs.prune.single_heads`, which says for every head which images become wrong or right.

The peer has each head's contributions dense and in memory, `[image, joint]`, float32. It subtracts their deviations
from the embeddings, block by block, multiplies by the class vectors in PyTorch, and takes the largest. It runs with the
better of two block sizes on three heads; its time for all is a multiple, without reading or making the contributions.

The products are those of head coordinates with all classes, at this machine's measured rate of such products in
float32. The sweep leaves most of them out: a bound says which classes can be the best.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from threadpoolctl import threadpool_limits
from torch import Tensor

import headspan as hs
from benchmarks.classified_store import write_classified_store
from benchmarks.measure import benchmark, seconds
from benchmarks.memory import growth
from headspan.store.products import over_spans
from headspan.store.schema import Dimensions

QUESTION = "direct effect of every head alone"
DUE_TO = (
    "a head moves the scores of all classes by a product of 67 numbers an image, where dense contributions have 768. A "
    "bound by Cauchy and Schwarz leaves out classes that cannot become the best."
)
# The required limit of seconds on two cores.
SECONDS_MARK = 60.0
_ACCURACY = 0.75
_PEER_BLOCKS = (1024, 8192)


def run(toy: bool) -> dict[str, Any]:
    """Seconds and memory of a sweep over all heads, and the peer's seconds."""
    images, layers, heads, classes, joint = (300, 3, 2, 70, 48) if toy else (50_000, 24, 16, 1000, 768)
    size = Dimensions(
        images,
        256 if toy else 2048,
        layers=tuple(range(layers)),
        all_layers=layers,
        direct_layers=layers,
        heads=heads,
        head_dim=64,
        tokens=257,
        prefix_tokens=1,
        joint=joint,
        terms=layers + 1,
    )
    random = np.random.default_rng()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "run.zarr"
        known, truths = write_classified_store(path, size, classes, _ACCURACY, random)
        store = hs.open(path)
        # Read before, as every analysis of an open store has them.
        unit = store.embedding / store.norm[:, 2:]
        with growth() as grown:
            found = hs.prune.single_heads(store, known, truths)
        sweep = seconds(lambda: hs.prune.single_heads(store, known, truths), repeats=3, warmup=0)
        tried = [(layer, 0) for layer in sorted({0, layers // 2, layers - 1})]
        peer, same = _peer(store, found, unit, known.vectors, truths, tried)
    rate = _product_rate(random, classes, 3 if toy else 100)
    products = 2 * layers * heads * images * classes * 67 / rate
    return {
        "heads": layers * heads,
        "images": images,
        "classes": classes,
        "accuracy": round(found.accuracy_before, 4),
        "seconds": round(sweep.median, 3),
        "seconds_20_80": [round(sweep.low, 3), round(sweep.high, 3)],
        "seconds_mark": SECONDS_MARK,
        "memory_mb": round(grown() / 1e6),
        "peer_seconds_a_head": float(f"{peer:.4g}"),
        "peer_times_as_long": round(peer * layers * heads / sweep.median, 1),
        "product_gflop_s": float(f"{rate / 1e9:.3g}"),
        "products_seconds": float(f"{products:.3g}"),
        "same": same,
    }


def _peer(
    store: hs.Store,
    found: hs.prune.SingleHeads,
    unit: np.ndarray,
    vectors: np.ndarray,
    truths: np.ndarray,
    heads: list[tuple[int, int]],
) -> tuple[float, bool]:
    """The peer's seconds for one head, and whether it finds the same images right but for the rounding of float32."""
    embeddings, classes, right = map(torch.from_numpy, (unit, vectors, truths))
    taken, same = [], True
    for head in heads:
        contributions = torch.from_numpy(store.head(*head))
        mean = contributions.mean(dim=0)
        best = []
        for rows in _PEER_BLOCKS:
            found_right: list[Tensor] = []
            times = seconds(
                lambda rows=rows, kept=found_right: kept.append(  # type: ignore[misc]
                    _dense(embeddings, contributions, mean, classes, right, rows)  # noqa: B023
                ),
                repeats=3,
            )
            best.append(times.median)
            same &= int((found_right[0].numpy() != found.right(*head)).sum()) <= 1e-4 * len(truths)
        taken.append(min(best))
    return float(np.mean(taken)), same


def _dense(
    embeddings: Float[Tensor, "image joint"],
    contributions: Float[Tensor, "image joint"],
    mean: Float[Tensor, " joint"],
    classes: Float[Tensor, "class_ joint"],
    truths: Tensor,
    rows: int,
) -> Tensor:
    """Which images are right after the mean ablation of one head, from dense contributions."""
    right = torch.empty(len(embeddings), dtype=torch.bool)
    for first in range(0, len(embeddings), rows):
        here = slice(first, first + rows)
        moved = embeddings[here] - contributions[here] + mean
        right[here] = (moved @ classes.T).argmax(dim=1) == truths[here]
    return right


def _product_rate(random: np.random.Generator, classes: int, products: int) -> float:
    """Operations a second of products of head coordinates with all classes, on all cores."""
    matrix = random.standard_normal((67, classes), dtype=np.float32)

    def multiply(first: int, end: int) -> None:
        coordinates = np.ones((1024, 67), np.float32)
        out = np.empty((1024, classes), np.float32)
        for _ in range(first, end):
            np.matmul(coordinates, matrix, out=out)

    count = products * (os.cpu_count() or 1)
    with threadpool_limits(1, "blas"):
        taken = seconds(lambda: over_spans(count, 1, multiply), repeats=5)
    return 2 * 1024 * 67 * classes * count / taken.median


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row: the sweep's seconds and memory, the peer, and the products alone."""
    return [
        ["heads × images × classes", "sweep", "memory", "dense contributions", "all products alone"],
        [
            f"{line['heads']} × {line['images']:,} × {line['classes']:,}, {line['accuracy']:.1%} right",
            f"{line['seconds']:.3g} s" + ("" if line["same"] else ", WRONG"),
            f"{line['memory_mb']:,} MB",
            f"{line['peer_seconds_a_head']:.3g} s a head, {line['peer_times_as_long']:.1f} × as long",
            f"{line['products_seconds']:.3g} s at {line['product_gflop_s']:,.0f} GFLOP/s",
        ],
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
