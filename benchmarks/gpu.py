"""How fast and how exact is the GPU path? One command for one GPU, under 8 minutes: `python -m benchmarks.gpu`.

Correctness comes first, against float64; then ceilings (copy bandwidth, bf16 matrix products), every fused op
beside PyTorch's own, and the tower with everything emitted beside its peers. Needs torch, triton and jaxtyping
alone; the peer open_clip is left out, with a sentence, where it is not installed. Lines go to
`benchmarks/results/<device>.jsonl`, and `python -m benchmarks.readme` puts them into the README's table.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.measure import RESULTS, circumstances

ACCURACY, OPS, TOWER = "GPU: bf16 contributions", "GPU: fused ops", "GPU: ViT-L/14 with all contributions"
QUESTIONS = (ACCURACY, OPS, TOWER)
DEVICE = "cuda"
# What the whole command may take; a peer whose compilation might not fit any more is left out and named.
SECONDS = 450.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """A tower and a batch."""

    batch: int = 256
    layers: int = 24
    heads: int = 16
    head_dim: int = 64
    joint: int = 768
    patch: int = 14
    pixels: int = 224
    # Texts that are mapped at once.
    texts: int = 64
    # Height and width of a photograph as it comes from its JPEG.
    photo: tuple[int, int] = (375, 500)
    # TEXTSPAN over the last four layers: texts of the pool, and rounds.
    pool: int = 3498
    rounds: int = 60

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """The patches and the class token."""
        return (self.pixels // self.patch) ** 2 + 1


# ViT-L/14 at 224 pixels.
SIZES = Sizes()
_NEEDED = ("triton", "jaxtyping")
_ENGINE = Path(__file__).parent.parent / "engine"


def main() -> int:
    """Run everything; returns the exit code."""
    began = time.monotonic()
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if not torch.cuda.is_available() or missing:
        found = f"{' and '.join(missing)} not installed" if missing else "torch sees none"
        print(f"benchmarks.gpu measures a CUDA GPU, but {found}; run it on a machine that has one", file=sys.stderr)
        return 2
    _make_importable()
    # Not before: they import Triton's kernels.
    from benchmarks import gpu_ops, gpu_tower

    notes = [f"{name} is not installed, so its rows are left out" for name in ("open_clip",) if find_spec(name) is None]
    ceilings = {"copy_tb_s": copy_rate(), "bf16_tflop_s": matmul_rate()}
    print(f"{torch.cuda.get_device_name()}: {ceilings}; {'; '.join(notes)}", flush=True)

    def left() -> float:
        return SECONDS - (time.monotonic() - began)

    for question, run in ((ACCURACY, gpu_tower.accuracy), (OPS, gpu_ops.run), (TOWER, gpu_tower.speed)):
        line = {"question": question, **run(ceilings, left), "ceilings": ceilings, "notes": notes, **_circumstances()}
        text = json.dumps(line, ensure_ascii=False)
        print(text, flush=True)
        # Written at once, so that a run that is cut short has told what it knew.
        with (RESULTS / f"{line['device']}.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        if line.get("wrong"):
            print(f"wrong beyond tolerance: {line['wrong']}; nothing further is timed", file=sys.stderr)
            return 1
    return 0


def accuracy_words(line: dict[str, Any]) -> tuple[str, str]:
    """The README's cells: the number, and what it is held against."""
    return (
        f"sum of contributions within {line['bf16']['sum_error']:.1e}, cosine {line['bf16']['cosine']:.6f}",
        f"float64 pass; marks 1e-2 and 0.9999 {'met' if line['marks_met'] else 'MISSED'}; "
        f"float32: {line['fp32']['sum_error']:.1e}",
    )


def ops_words(line: dict[str, Any]) -> tuple[str, str]:
    """The README's cells of all ops."""
    return (
        "; ".join(f"{name}: {row['fused']['ms']:.3g} ms" for name, row in line["rows"].items()),
        "the better of PyTorch eager and compiled: "
        + "; ".join(
            f"{row['times_faster']:.2g}×{'' if row['kept'] else ' (not kept)'}" for row in line["rows"].values()
        ),
    )


def tower_words(line: dict[str, Any]) -> tuple[str, str]:
    """The README's cells of the tower."""
    times = line["times_open_clip_compiled"]
    return (
        f"{line['images_a_second']:,} images/s, {line['share_of_bf16']:.0%} of the measured bf16 matrix rate",
        "open_clip's `encode_image`, compiled: " + ("not yet measured" if times is None else f"{times:.2f}× its speed"),
    )


def milliseconds(work: Callable[[], object], for_ms: int = 200) -> dict[str, float]:
    """Median and 20th and 80th percentile of `work`'s time on the GPU, the L2 cache emptied before each run."""
    from triton.testing import do_bench

    low, median, high = do_bench(work, warmup=max(25, for_ms // 4), rep=for_ms, quantiles=[0.2, 0.5, 0.8])
    return {"ms": round(median, 4), "ms_20": round(low, 4), "ms_80": round(high, 4)}


def or_why_not(measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row beside ours; one that cannot be measured says why, and the rest is measured all the same."""
    try:
        return measured()
    # What PyTorch raises for too little memory, for what it cannot compile and for what it cannot capture.
    except RuntimeError as problem:
        return {"failed": f"{type(problem).__name__}: {str(problem).partition(chr(10))[0]}"}


def copy_rate() -> float:
    """Terabytes a second of a device-to-device copy, bytes read and bytes written."""
    source = torch.randn(SIZES.batch << 22, device=DEVICE)
    target = torch.empty_like(source)
    return _digits(2 * source.nbytes / milliseconds(lambda: target.copy_(source))["ms"] / 1e9)


def matmul_rate() -> float:
    """Teraflops of a large bf16 matrix product of random numbers."""
    size = 32 * SIZES.batch
    a, b = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return _digits(2 * size**3 / milliseconds(lambda: a @ b)["ms"] / 1e9)


def _digits(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


def _make_importable() -> None:
    """Let the tower be imported where the store's needs are missing, which headspan's own `__init__` brings."""
    sys.path[:0] = [str(_ENGINE), str(_ENGINE.parent / "kernels")]
    if find_spec("zarr") is None:
        package = ModuleType("headspan")
        package.__path__ = [str(_ENGINE / "headspan")]
        sys.modules["headspan"] = package


def _circumstances() -> dict[str, Any]:
    here = circumstances()
    here["device"] = "-".join(torch.cuda.get_device_name().lower().split())
    here["versions"] = {**here["versions"], "triton": version("triton"), "cuda": torch.version.cuda}
    return here


if __name__ == "__main__":
    sys.exit(main())
