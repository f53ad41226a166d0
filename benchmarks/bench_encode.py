"""Is the decomposed forward pass on a CPU as fast as the plain one, what does emitting cost, and is the tower fast?

headspan's tower with the heads of all layers, and with all patches too, against open_clip's image tower: same
weights, type, batch, threads and process, by turns. Emission is held against the tower with nothing kept but the
last layer's heads, which are computed in any case; the tower's arithmetic against plain matrix products at its own
shapes. Random weights and pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import Sizes
from benchmarks.gpu_tower import flops_done
from benchmarks.measure import alternate, benchmark, median, ratio
from benchmarks.models import MODELS, TOY, random_visual
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower
from headspan.model.tower import Tower
from headspan_kernels import ops

QUESTION = "decomposed forward on a CPU"
# Time over open_clip's, and the share of the matrix products' rate.
MARKS = {
    "fp32": {"heads": 0.92, "patches": 0.97, "share": 0.6},
    "bf16": {"heads": 0.85, "patches": 0.95, "share": 0.35},
}
# Time over that of the tower with nothing emitted.
EMISSION_MARKS = {"heads": 1.02, "patches": 1.06}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Emission is a few hundredths of a pass, and so is what one round differs from the next.
_EMISSION_ROUNDS = 15
# Images a batch, and rounds.
_RUNS = {"ViT-B-32": (16, 7), "ViT-B-16": (16, 7), "ViT-L-14": (4, 9)}


def run(toy: bool) -> dict[str, Any]:
    """Ratios of times, and shares, of every model and type."""
    # As a run does; it serves the peer as well.
    keep_freed_memory()
    rows: dict[str, dict[str, Any]] = {}
    emission_rounds = 2 if toy else _EMISSION_ROUNDS
    for name, (batch, rounds) in ({"toy": (3, 2)} if toy else _RUNS).items():
        size = TOY if toy else MODELS[name]
        visual = random_visual(size)
        exact = to_tower(visual, name)
        pixels = torch.randn(batch, 3, size.pixels, size.pixels)
        for precision, dtype in _DTYPES.items():
            tower = exact.to(torch.device("cpu"), dtype)
            rows[f"{name} {precision}"] = _row(size, tower, visual.to(dtype), pixels.to(dtype), rounds, emission_rounds)
    return {
        "threads": torch.get_num_threads(),
        "rows": rows,
        "marks": MARKS,
        "emission_marks": EMISSION_MARKS,
        "missed": [word for name, row in rows.items() for word in _missed(name, row)],
    }


def _row(size: Sizes, tower: Tower, visual: Any, pixels: Tensor, rounds: int, emission_rounds: int) -> dict[str, Any]:
    every, last = range(size.layers), (size.layers - 1,)
    products, product_operations = _products(size, pixels)
    emitting: dict[str, Callable[[], object]] = {
        "heads": lambda: tower.forward(pixels, every),
        "patches": lambda: tower.forward(pixels, every, with_patches=True, patches_dtype=torch.float16),
    }
    with torch.inference_mode():
        times = alternate({"open_clip": lambda: visual(pixels), **emitting, "products": products}, rounds)
        emission = alternate({"nothing": lambda: tower.forward(pixels, last), **emitting}, emission_rounds)
    per_operation = flops_done(size) * len(pixels) / product_operations
    return {
        "batch": len(pixels),
        "rounds": rounds,
        "images_a_second": float(f"{len(pixels) / median(times['heads']):.4g}"),
        "open_clip_seconds": median(times["open_clip"]),
        "heads": ratio(times, "heads", "open_clip"),
        "patches": ratio(times, "patches", "open_clip"),
        "emission_rounds": emission_rounds,
        "emission_heads": ratio(emission, "heads", "nothing"),
        "emission_patches": ratio(emission, "patches", "nothing"),
        "products_gflop_s": round(product_operations / median(times["products"]) / 1e9, 1),
        "share": round(per_operation * ratio(times, "products", "heads"), 4),
    }


def _products(size: Sizes, pixels: Tensor) -> tuple[Callable[[], object], int]:
    """The four matrix products of a block at the batch's shapes, and their operations."""
    rows, width = len(pixels) * size.tokens, size.width
    shapes = ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))
    operands = [
        (
            torch.randn(rows, columns, dtype=pixels.dtype),
            torch.randn(out, columns, dtype=pixels.dtype) * columns**-0.5,
            torch.randn(out, dtype=pixels.dtype),
        )
        for out, columns in shapes
    ]

    linear = ops(pixels.device).linear

    def work() -> None:
        for operand in operands:
            # The fastest product at hand: PyTorch's own takes twice as long in float32 on some processors.
            linear(*operand)

    return work, sum(2 * rows * out * columns for out, columns in shapes)


def _missed(name: str, row: Mapping[str, Any]) -> list[str]:
    """The marks that a row misses, in words."""
    marks = MARKS[name.rpartition(" ")[2]]
    words = [f"{name} {kind} {row[kind]}" for kind in ("heads", "patches") if row[kind] > marks[kind]]
    words += [f"{name} share {row['share']}"] if row["share"] < marks["share"] else []
    for kind, most in EMISSION_MARKS.items():
        words += [f"{name} emission of {kind} {row[f'emission_{kind}']}"] if row[f"emission_{kind}"] > most else []
    return words


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the ratios of time, and what they are held against."""
    rows: Mapping[str, Mapping[str, Any]] = line["rows"]

    def listed(key: str) -> str:
        return ", ".join(f"{row[key]:.2f}" for row in rows.values())

    return (
        f"{', '.join(rows)}: heads {listed('heads')}; patches {listed('patches')} of the time",
        f"open_clip's image tower, {line['threads']} threads; of the tower without emission: heads "
        f"{listed('emission_heads')}, patches {listed('emission_patches')}; share of the matrix-product rate: "
        f"{listed('share')}",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
