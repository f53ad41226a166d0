"""How long does a command take to start, and a store of a million rows to open?

Each row is a process of its own, from its start to its end; the first batch ends its process where the model would
begin to compute. Files are in the page cache. The model's weights are random numbers that are drawn from a seed, or
come from a file of the same size. Opening is measured within a process that has imported headspan. Each row has a mark
that it must not exceed on two quiet cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import benchmark
from benchmarks.pictures import photo_like, write_shards
from benchmarks.random_store import sparse_store
from headspan.store.reader import Store
from headspan.store.schema import Dimensions

QUESTION = "starting a command, opening a million rows"
DUE_TO = (
    "A command imports only what it runs, and a model is loaded without torch's compiler. Weights that are loaded from "
    "a file are not drawn first. Checksums of weights are computed, and shards are listed, while the main thread works "
    "on. Most of what is left is importing torch and open_clip, and drawing or copying weights. `ok` is read from the "
    "files of its shards, one for each unit."
)
# The most seconds that each row may take on two quiet cores.
MARKS = {
    "help": 0.3,
    "info": 1.0,
    "open_small_units": 0.3,
    "open_large_units": 0.3,
    "first_drawn": 5.0,
    "first_file": 5.0,
}
_ROWS = {
    "help": "`headspan --help`",
    "info": "`headspan info`, {rows:,} rows in units of {small_units:,}",
    "open_small_units": "open {rows:,} rows in units of {small_units:,}",
    "open_large_units": "open {rows:,} rows in units of {large_units:,}",
    "first_drawn": "`headspan precompute` to the first batch, {model}, weights from a seed",
    "first_file": "the same, weights from a file",
}
_SMALL_UNITS, _LARGE_UNITS = 256, 16_384
_HEADSPAN = (sys.executable, "-m", "headspan")
# Ends the process where the first batch would be computed.
_UNTIL_FIRST_BATCH = """
import os
from headspan.__main__ import main
from headspan.run.encoder import Encoder
Encoder.__call__ = lambda self, batch: os._exit(0)
main()
"""


def run(toy: bool) -> dict[str, Any]:
    """Seconds, and seconds of processor time, of each row: the least of some processes."""
    rows, images, model, rounds = (2_000, 4, "reference", 0) if toy else (1_000_000, 64, "ViT-B-32", 5)
    times: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in (_SMALL_UNITS, _LARGE_UNITS):
            _write_store(folder / f"{size}.zarr", rows, size)
        pictures = [photo_like(np.random.default_rng(seed), 500, 375) for seed in range(4)]
        write_shards(folder / "shards", pictures, images)
        weights = str(folder / "weights.safetensors")
        _save_weights(model, weights)
        precompute = (sys.executable, "-W", "ignore", "-c", _UNTIL_FIRST_BATCH, "precompute", str(folder / "shards"))
        for number in range(rounds + 1):
            for row, command in {
                "help": (*_HEADSPAN, "--help"),
                "info": (*_HEADSPAN, "info", str(folder / f"{_SMALL_UNITS}.zarr")),
                **{
                    row: (
                        *precompute,
                        "--model",
                        model,
                        "--pretrained",
                        given,
                        "--device",
                        "cpu",
                        "--out",
                        f"{name}/{row}{number}",
                    )
                    for row, given in (("first_drawn", "random:0"), ("first_file", weights))
                },
            }.items():
                _keep_least(times, row, _process_seconds(command))
            _keep_least(times, "open_small_units", _open_seconds(folder / f"{_SMALL_UNITS}.zarr"))
            _keep_least(times, "open_large_units", _open_seconds(folder / f"{_LARGE_UNITS}.zarr"))
    return {
        "rows": rows,
        "small_units": _SMALL_UNITS,
        "large_units": _LARGE_UNITS,
        "images": images,
        "model": model,
        **{f"{row}_seconds": round(wall, 4) for row, (wall, _) in times.items()},
        **{f"{row}_processor_seconds": round(processor, 4) for row, (_, processor) in times.items()},
    }


def _save_weights(model: str, path: str) -> None:
    """Write the weights that the seed gives a model to a file."""
    # Here, since both import torch, and rows are processes of their own.
    from safetensors.torch import save_file

    from headspan.model.load import load_model

    state = load_model(model, "random:0").clip.state_dict()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)


def _write_store(path: Path, rows: int, unit_images: int) -> None:
    """A store of ViT-B/32's last four layers without numbers; one image in a thousand is bad."""
    size = Dimensions(
        rows,
        unit_images,
        layers=(8, 9, 10, 11),
        all_layers=12,
        direct_layers=12,
        heads=12,
        head_dim=64,
        tokens=50,
        prefix_tokens=1,
        joint=512,
        terms=13,
    )
    sparse_store(
        path,
        size,
        np.random.default_rng(0),
        bad_every=1000,
        model="ViT-B-32",
        pretrained="random:0",
        weights_sha256="0" * 64,
        precision="fp32",
        backend="none",
        sum={"direct_layers": list(range(12)), "terms": [], "through_pool": None},
    )


def _keep_least(times: dict[str, tuple[float, float]], row: str, found: tuple[float, float]) -> None:
    times[row] = min(times.get(row, found), found)


def _process_seconds(command: Sequence[str]) -> tuple[float, float]:
    """Seconds and processor seconds of a process that runs `command`."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - began, processor


def _open_seconds(path: Path) -> tuple[float, float]:
    """Seconds and processor seconds of opening a store."""
    began, before = time.perf_counter(), time.process_time()
    store = Store(path)
    assert store.images == store.planned_images - len(store.bad_images())
    return time.perf_counter() - began, time.process_time() - before


def table(line: dict[str, Any]) -> list[list[str]]:
    """The rows of the table; the first is its head."""
    head = ["", "seconds", "processor seconds", "at most, on two quiet cores"]
    rows = [
        [
            text.format(**line),
            f"{line[f'{row}_seconds']:.3f}",
            f"{line[f'{row}_processor_seconds']:.3f}",
            f"{MARKS[row]} s",
        ]
        for row, text in _ROWS.items()
    ]
    return [head, *rows]


if __name__ == "__main__":
    benchmark(QUESTION, run)
