"""How do times grow: precompute with images, TEXTSPAN with images, texts and heads?

The exponent of each, log of the ratio of times over log of the ratio of sizes: 1 is proportional, 0 is not at all.
`precompute` runs the model that ships with headspan over ten times the images; loading that model and planning are
in both times. TEXTSPAN starts from moments, whose number of images is only a number.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_textspan import head_spread
from benchmarks.measure import alternate, benchmark, median
from benchmarks.pictures import photo_like, write_shards
from headspan.config import PrecomputeSettings
from headspan.run.precompute import precompute
from headspan.spans.algorithm import span_heads

QUESTION = "growth"
_ROUNDS = 60
_RANK = 80


def run(toy: bool) -> dict[str, Any]:
    """The exponents, and the seconds that they come from."""
    return {
        "precompute, images": _precompute(*(10, 2) if toy else (400, 5)),
        **_textspan(toy),
    }


def _precompute(images: int, rounds: int) -> dict[str, Any]:
    random = np.random.default_rng()
    encoded = [photo_like(random, 160, 120) for _ in range(20)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outs = (str(folder / f"{number}.zarr") for number in count())

        def over(shards: str) -> Callable[[], object]:
            return lambda: precompute(
                PrecomputeSettings(shards=(shards,), out=next(outs), model="reference", device="cpu")
            )

        works = {}
        for number in (images, 10 * images):
            write_shards(folder / str(number), encoded, number)
            works[number] = over(str(folder / str(number)))
        return _exponent(works, rounds)


def _textspan(toy: bool) -> dict[str, Any]:
    images, texts, heads, rounds = (60, 35, 1, 10) if toy else (2_000, 350, 8, _ROUNDS)
    random = np.random.default_rng()
    pool = random.standard_normal((10 * texts, 768)).astype(np.float32)
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    few = [head_spread(random, images)[0] for _ in range(8 * heads)]
    many = [head_spread(random, 10 * images)[0] for _ in range(heads)]

    def spans(spreads: Sequence[Any], chosen: np.ndarray) -> Callable[[], object]:
        return lambda: span_heads(spreads, chosen, rounds, _RANK)

    return {
        "TEXTSPAN, images": _exponent({images: spans(few[:heads], pool), 10 * images: spans(many, pool)}),
        "TEXTSPAN, texts": _exponent({texts: spans(few[:heads], pool[:texts]), 10 * texts: spans(few[:heads], pool)}),
        "TEXTSPAN, heads": _exponent({heads: spans(few[:heads], pool), 8 * heads: spans(few, pool)}),
    }


def _exponent(works: Mapping[int, Callable[[], object]], rounds: int = 5) -> dict[str, Any]:
    """From one size to the other, by turns."""
    times = alternate({str(size): work for size, work in works.items()}, rounds)
    small, large = works
    ratios = np.divide(times[str(large)], times[str(small)])
    return {
        "from": small,
        "to": large,
        "seconds": [median(taken) for taken in times.values()],
        "exponent": round(float(np.median(np.log(ratios))) / math.log(large / small), 3),
    }


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the exponents, and over which sizes."""
    rows = {name: row for name, row in line.items() if isinstance(row, dict) and "exponent" in row}
    return (
        "; ".join(f"{name}: {row['exponent']:.2f}" for name, row in rows.items()),
        "exponent 1 is proportional; " + "; ".join(f"{row['from']:,} → {row['to']:,}" for row in rows.values()),
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
