"""Does the memory of `precompute` grow with the number of images, and is it what the command said it would be?

The command runs in a process of its own over some images and over ten times as many; its peak resident
memory is the operating system's count. Where the command names the memory that it projects, that is kept beside it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import benchmark
from benchmarks.pictures import noise, write_shards

QUESTION = "peak memory of precompute"
_MODEL = {
    "embed_dim": 32,
    # Pixels of full size, so that keeping them would show.
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
_COMMAND = (
    "import resource, sys; from headspan.cli.main import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
)
_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def run(toy: bool) -> dict[str, Any]:
    """Peak resident bytes over some images and over ten times as many."""
    images = 256 if toy else 2_000
    random = np.random.default_rng()
    # Noise of camera size: each is some 100 kB as a file and 1 MB decoded.
    encoded = [noise(random, 640, 480) for _ in range(16)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench-vit.json").write_text(json.dumps(_MODEL))
        found = []
        for count in (images, 10 * images):
            write_shards(folder / f"shards-{count}", encoded, count)
            found.append(_peak(folder, count))
    peaks, projected = zip(*found, strict=True)
    kept_to = [peak <= most for peak, most in found if most is not None]
    return {
        "images": images,
        "peak_bytes": peaks[0],
        "peak_bytes_at_10_times": peaks[1],
        "growth": round(peaks[1] / peaks[0], 3),
        "estimated_bytes": projected[0],
        "projected_bytes_at_10_times": projected[1],
        "within_projected": all(kept_to) if len(kept_to) == len(found) else None,
    }


def _peak(folder: Path, images: int) -> tuple[int, int | None]:
    """Peak resident bytes of the command, and the memory that it projected, if it said so."""
    command = [sys.executable, "-c", _COMMAND, "precompute", str(folder / f"shards-{images}")]
    command += ["--out", str(folder / f"{images}.zarr"), "--model", str(folder / "bench-vit.json")]
    command += ["--pretrained", "random:0", "--layers", "all", "--emit", "heads,patches", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]), estimated_bytes(done.stderr)


def estimated_bytes(said: str) -> int | None:
    """The bytes after the word "memory" in what the command said, as in `memory up to 1,400 MB`; None without one."""
    found = re.search(rf"\bmemory\b[^\n;.]*?([\d,]+(?:\.\d+)?) ({'|'.join(_UNITS)})\b", said)
    return round(float(found[1].replace(",", "")) * _UNITS[found[2]]) if found else None


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the peak, and at ten times the images."""
    projected = line.get("projected_bytes_at_10_times")
    return (
        f"{line['peak_bytes'] / 1e6:,.0f} MB at {line['images']:,} images",
        f"{line['peak_bytes_at_10_times'] / 1e6:,.0f} MB at {10 * line['images']:,} images, {line['growth']:.2f}× of it"
        + (f"; the command projects {projected / 1e6:,.0f} MB" if projected else ""),
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
