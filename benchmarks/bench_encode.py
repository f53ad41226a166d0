"""What does decomposing a forward pass cost on a CPU, and what do oneDNN's matrix products add?

headspan's tower emits the heads of all layers, and in a second form all patches too. Three ratios of time, each
measured alternately in one run, separate the causes:

* emission: the tower that emits, divided by the same tower on the same ops that emits the last layer's heads only;
* tower: headspan's tower on PyTorch's own ops, divided by open_clip's image tower, which runs on them too;
* ops: headspan's tower on the ops that serve this processor, divided by the same tower on PyTorch's own ops.

Weights, type, batch, threads and process are the same. Weights and pixels are random. bf16 is measured where the
processor multiplies it.
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
from benchmarks.precision import pytorchs_ops
from headspan.errors import percent
from headspan.model.allocator import keep_freed_memory
from headspan.model.convert import to_tower
from headspan.model.tower import Tower
from headspan_kernels import onednn, ops

QUESTION = "forward pass on a CPU, decomposed"
DUE_TO = (
    "“Emission” is the time with emission divided by the time without. “Tower” is headspan's time divided by "
    "open_clip's on the same ops: headspan's last block computes queries, output and MLP for the class token only, and "
    "open_clip's for all rows. “Ops” is the time with oneDNN's float32 and bf16 matrix products, whose weights are "
    "laid out once, divided by the time with PyTorch's own; it is 1 if the processor has AVX2 only, because headspan "
    "uses PyTorch's float32 products there. “In all” is the product of the last two: what a user of open_clip gains."
)
# The most that emission may cost: time divided by that of the tower that emits nothing.
EMISSION_MARKS = {"heads": 1.02, "patches": 1.06}
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Images a batch, and rounds. Emission costs a few hundredths of a pass, and two rounds differ by as much.
_RUNS = {"ViT-B-32": (8, 11), "ViT-L-14": (2, 7)}


def run(toy: bool) -> dict[str, Any]:
    """Ratios of times for every model and type."""
    # As in a run; open_clip's tower profits too.
    keep_freed_memory()
    rows: dict[str, dict[str, Any]] = {}
    for name, (batch, rounds) in ({"toy": (3, 2)} if toy else _RUNS).items():
        size = TOY if toy else MODELS[name]
        visual = random_visual(size)
        exact = to_tower(visual, name)
        pixels = torch.randn(batch, 3, size.pixels, size.pixels)
        for precision, dtype in _DTYPES.items():
            if precision == "fp32" or onednn.available(dtype):
                tower = exact.to(torch.device("cpu"), dtype)
                rows[f"{name} {precision}"] = _row(size, tower, visual.to(dtype), pixels.to(dtype), rounds)
    return {
        "threads": torch.get_num_threads(),
        "rows": rows,
        "emission_marks": EMISSION_MARKS,
        "missed": [word for name, row in rows.items() for word in _missed(name, row)],
    }


def _row(size: Sizes, tower: Tower, visual: Any, pixels: Tensor, rounds: int) -> dict[str, Any]:
    every, last = range(size.layers), (size.layers - 1,)
    products, product_operations = _products(size, pixels)

    def heads() -> None:
        tower.forward(pixels, every)

    def patches() -> None:
        tower.forward(pixels, every, with_patches=True, patches_dtype=torch.float16)

    works: dict[str, Callable[[], object]] = {
        "open_clip": lambda: visual(pixels),
        "nothing": lambda: tower.forward(pixels, last),
        "heads": heads,
        "patches": patches,
        "pytorch_heads": lambda: _on_pytorchs_ops(heads),
        "pytorch_patches": lambda: _on_pytorchs_ops(patches),
        "products": products,
    }
    with torch.inference_mode():
        times = alternate(works, rounds)
    per_operation = flops_done(size) * len(pixels) / product_operations
    return {
        "batch": len(pixels),
        "rounds": rounds,
        "onednn": onednn.serves(pixels.dtype),
        "images_a_second": float(f"{len(pixels) / median(times['heads']):.4g}"),
        "open_clip_seconds": median(times["open_clip"]),
        **{f"emission_{kind}": ratio(times, kind, "nothing") for kind in EMISSION_MARKS},
        **{f"tower_{kind}": ratio(times, f"pytorch_{kind}", "open_clip") for kind in EMISSION_MARKS},
        **{f"ops_{kind}": ratio(times, kind, f"pytorch_{kind}") for kind in EMISSION_MARKS},
        **{f"all_{kind}": ratio(times, kind, "open_clip") for kind in EMISSION_MARKS},
        "products_gflop_s": round(product_operations / median(times["products"]) / 1e9, 1),
        "share": round(per_operation * ratio(times, "products", "heads"), 4),
    }


def _on_pytorchs_ops(work: Callable[[], object]) -> None:
    with pytorchs_ops():
        work()


def _products(size: Sizes, pixels: Tensor) -> tuple[Callable[[], object], int]:
    """The four matrix products of a block at the batch's shapes, on the ops that serve, and their operations."""
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
            linear(*operand)

    return work, sum(2 * rows * out * columns for out, columns in shapes)


def _missed(name: str, row: Mapping[str, Any]) -> list[str]:
    """The required limits that a row misses, in words."""
    found = {kind: row[f"emission_{kind}"] for kind in EMISSION_MARKS}
    return [f"{name} emission of {kind} {cost}" for kind, cost in found.items() if cost > EMISSION_MARKS[kind]]


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model and type: the ratios for heads, and for heads and patches."""
    threads = line["threads"]
    head = [f"ratios of times: heads, patches ({threads} threads)", "emission", "tower", "ops", "in all", "images/s"]
    rows = [
        [
            name,
            *(f"{row[f'{part}_heads']:.2f}, {row[f'{part}_patches']:.2f}" for part in ("emission", "tower")),
            f"{row['ops_heads']:.2f}, {row['ops_patches']:.2f} ({'oneDNN' if row['onednn'] else 'PyTorch'})",
            f"{row['all_heads']:.2f}, {row['all_patches']:.2f}",
            f"{row['images_a_second']:.3g}",
        ]
        for name, row in line["rows"].items()
    ]
    return [head, *rows]


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the most that emission costs, and open_clip's time on the same ops."""
    rows = line["rows"].values()
    heads, patches = (max(row[f"emission_{kind}"] for row in rows) - 1 for kind in EMISSION_MARKS)
    others = sorted(1 / row["tower_heads"] for row in rows)
    return (
        f"all heads cost at most {percent(max(heads, 0))} of the pass, all patches {percent(max(patches, 0))} "
        f"({', '.join(line['rows'])})",
        f"the same tower without emission; open_clip on the same ops takes {others[0]:.2f} to {others[-1]:.2f} times "
        "as long as ours with all heads",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
