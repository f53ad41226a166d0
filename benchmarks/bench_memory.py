"""Does the memory of `precompute` grow with the number of images?

The command runs in a process of its own over some images and over ten times as many; its peak resident
memory is the operating system's count.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import benchmark

QUESTION = "peak memory of precompute"
_MODEL = {
    "embed_dim": 32,
    # Pixels of full size, so that keeping them would show.
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
_COMMAND = (
    "import resource, sys; from headspan.cli import main; code = main(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024); sys.exit(code)"
)


def run(toy: bool) -> dict[str, Any]:
    """Peak resident bytes over some images and over ten times as many."""
    images = 256 if toy else 2_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bench-vit.json").write_text(json.dumps(_MODEL))
        peaks = [_peak_bytes(folder, count) for count in (images, 10 * images)]
    return {
        "images": images,
        "peak_bytes": peaks[0],
        "peak_bytes_at_10_times": peaks[1],
        "growth": round(peaks[1] / peaks[0], 3),
    }


def _peak_bytes(folder: Path, images: int) -> int:
    shards = folder / f"shards-{images}"
    shards.mkdir()
    _write_shards(shards, images)
    out = folder / f"{images}.zarr"
    command = [sys.executable, "-c", _COMMAND, "precompute", str(shards), "--out", str(out)]
    command += ["--model", str(folder / "bench-vit.json"), "--pretrained", "random:0", "--layers", "all"]
    command += ["--emit", "heads,patches", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def _write_shards(folder: Path, images: int) -> None:
    """Noise of camera size: each is some 100 kB as a file and 1 MB decoded."""
    random = np.random.default_rng(0)
    encoded = []
    for _ in range(16):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (480, 640, 3), dtype=np.uint8)).save(buffer, "JPEG", quality=50)
        encoded.append(buffer.getvalue())
    for first in range(0, images, 1000):
        with tarfile.open(folder / f"{first // 1000:05d}.tar", "w") as tar:
            for number in range(first, min(first + 1000, images)):
                data = encoded[number % len(encoded)]
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    benchmark(QUESTION, run)
