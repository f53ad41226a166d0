"""Does the memory of `precompute` grow with the number of images, and is its estimate right?

The command runs in a process of its own, over some images and over several times as many. Its peak resident memory is
the operating system's count, and the estimate is the one that the command prints. Two models: ViT-B-32 with random
weights, and a tiny one of the same input size, with which far more images are run in the same time.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measure import benchmark
from benchmarks.pictures import noise, write_shards

QUESTION = "peak memory of precompute, by model"
DUE_TO = "The number of images in flight is limited, and units are written while they are computed."
_TINY = {
    "embed_dim": 32,
    # Images of full size: if a run kept their pixels, its memory would show it.
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


class _Run(NamedTuple):
    """A model's name, the images of the smaller run, and how many times as many the larger one has."""

    model: str
    images: int
    times: int


_TINY_NAME = "tiny-vit-224"
_RUNS = (_Run("ViT-B-32", 256, 4), _Run(_TINY_NAME, 1_000, 10))
_TOY_RUNS = (_Run(_TINY_NAME, 256, 10),)
_COMMAND = (
    "import resource, sys; from headspan.cli.main import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
)
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def run(toy: bool) -> dict[str, Any]:
    """Peak resident bytes of every model over some images and over several times as many."""
    random = np.random.default_rng()
    # Noise of camera size: some 100 kB as a file and 1 MB decoded. At toy size, that of what the models see.
    encoded = [noise(random, *((240, 240) if toy else (640, 480))) for _ in range(16)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / f"{_TINY_NAME}.json").write_text(json.dumps(_TINY))
        rows = {planned.model: _row(folder, encoded, planned) for planned in (_TOY_RUNS if toy else _RUNS)}
    return {"emit": "heads and patches of all layers", "rows": rows}


def _row(folder: Path, encoded: list[bytes], planned: _Run) -> dict[str, Any]:
    model = str(folder / f"{_TINY_NAME}.json") if planned.model == _TINY_NAME else planned.model
    sizes = (planned.images, planned.times * planned.images)
    found = []
    for images in sizes:
        shards = folder / f"shards-{images}"
        if not shards.exists():
            write_shards(shards, encoded, images)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            found.append(_peak(model, shards, Path(out) / "run.zarr"))
    peaks, estimates = zip(*found, strict=True)
    known = [peak <= most for peak, most in found if most is not None]
    return {
        "images": sizes,
        "peak_bytes": peaks,
        "estimated_bytes": estimates,
        "growth": round(peaks[1] / peaks[0], 3),
        "within_estimate": all(known) if len(known) == len(found) else None,
    }


def _peak(model: str, shards: Path, out: Path) -> tuple[int, int | None]:
    """Peak resident bytes of the command, and the memory that it estimated, if it printed one."""
    command = [sys.executable, "-c", _COMMAND, "precompute", str(shards), "--out", str(out), "--model", model]
    command += ["--pretrained", "random:0", "--layers", "all", "--emit", "heads,patches", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]), estimated_bytes(done.stderr)


def estimated_bytes(said: str) -> int | None:
    """The bytes after the word "memory" in the command's output, as in `memory up to 1,400 MB`; None without one."""
    found = re.search(rf"\bmemory\b[^\n;.]*?([\d,]+(?:\.\d+)?) ({'|'.join(_UNITS)})\b", said)
    return round(float(found[1].replace(",", "")) * _UNITS[found[2]]) if found else None


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each model: peaks at both numbers of images, and the estimate."""
    found = [[f"peak resident memory ({line['emit']})", "fewer images", "more images", "growth", "estimate"]]
    for model, row in line["rows"].items():
        cells = [
            f"{peak / 1e6:,.0f} MB ({images:,})" for peak, images in zip(row["peak_bytes"], row["images"], strict=True)
        ]
        most = row["estimated_bytes"][1]
        verdict = {True: "not exceeded", False: "EXCEEDED", None: "not printed"}[row["within_estimate"]]
        found.append([model, *cells, f"{row['growth']:.2f}×", (f"{most / 1e6:,.0f} MB, " if most else "") + verdict])
    return found


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the first model's peak, and at more images."""
    model, row = next(iter(line["rows"].items()))
    return (
        f"{model}: {row['peak_bytes'][1] / 1e9:.2f} GB at {row['images'][1]:,} images",
        f"{row['images'][0]:,} images: {row['peak_bytes'][0] / 1e9:.2f} GB",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
