"""Does `precompute` take no longer than its slowest stage?

The whole run, from JPEG shards to a finished store, against decoding alone (same samples and settings) and the forward
pass alone (same batches of decoded images), alternately in one process. Loading the model is timed separately and
subtracted from the whole. Beside it, the cost of an image in the launching process, with a model that returns at once
(launching.py). The pictures are photo-like, 500 × 375, or those of the shards that HEADSPAN_PHOTOS names.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.launching import MARK_MICROSECONDS, launching_microseconds
from benchmarks.measure import alternate, benchmark, median
from benchmarks.pictures import photo_like, write_shards
from headspan.config import PrecomputeSettings
from headspan.decode.batches import Batch, rebatch
from headspan.decode.choice import decoder_of
from headspan.run.defaults import resolved
from headspan.run.encoder import prepare
from headspan.run.precompute import precompute
from headspan.shards.open_images import open_images
from headspan.shards.plan import list_samples
from headspan.shards.samples import BadImage, Sample, SampleSpan
from headspan.shards.urls import expand, stored_names
from headspan.timing import StageTimes

QUESTION = "precompute end to end"
DUE_TO = "Stages overlap: decoding, the forward pass and writing run on threads of their own."
# The slower of decoding alone and the forward pass alone, divided by precompute without loading the model.
MARK = 0.95


def run(toy: bool) -> dict[str, Any]:
    """Seconds of the whole and of its stages alone, and the slower stage's share of the whole."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = os.environ.get("HEADSPAN_PHOTOS", "")
        if not photos or toy:
            random = np.random.default_rng()
            images = 12 if toy else 768
            write_shards(folder / "shards", [photo_like(random, 500, 375) for _ in range(images)], images)
            photos = str(folder / "shards")
        model = {"model": "reference"} if toy else {"model": "ViT-B-32", "pretrained": "random:0"}
        settings = {"shards": photos, "device": "cpu", **model}
        return {
            "pictures": "shards of HEADSPAN_PHOTOS" if photos != str(folder / "shards") else "photo-like",
            **_stages(settings, folder, rounds=2 if toy else 3),
            "launching_microseconds": round(launching_microseconds(model, folder, 96 if toy else 32_768), 1),
            "launching_mark": MARK_MICROSECONDS,
        }


def _stages(values: dict[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    given = PrecomputeSettings.from_dict({**values, "out": str(folder / "none.zarr")})
    encoder = prepare(given)
    settings = resolved(given, encoder)
    notes: list[BadImage] = []
    samples: list[Sample] = []
    for _, found in list_samples(stored_names(expand(settings.shards)), on_note=notes.append):
        samples += found

    size = settings.batch_size
    preprocess = encoder.model.preprocess
    decoder = decoder_of(settings, preprocess, settings.in_flight_bytes // 2, open_images, StageTimes())
    spans = [SampleSpan.of(samples[first : first + size]) for first in range(0, len(samples), size)]

    def decoded() -> list[Batch]:
        return list(rebatch(decoder.decode(spans), size))

    batches = decoded()
    outs = (str(folder / f"{number}.zarr") for number in count())
    works: dict[str, Callable[[], object]] = {
        "precompute": lambda: precompute(PrecomputeSettings.from_dict({**values, "out": next(outs)})),
        "prepare": lambda: prepare(settings),
        "decode": decoded,
        "forward": lambda: [encoder(batch) for batch in batches],
    }
    times = {name: np.array(taken) for name, taken in alternate(works, rounds).items()}
    running = times["precompute"] - times["prepare"]
    slower = np.maximum(times["decode"], times["forward"])
    return {
        "model": settings.model,
        "images": len(samples),
        "bad": len(samples) - sum(len(batch.rows) for batch in batches),
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        **{f"{name}_seconds": median(list(taken)) for name, taken in times.items()},
        "images_a_second": round(len(samples) / float(np.median(running)), 2),
        "share": round(float(np.median(slower / running)), 4),
        "mark": MARK,
    }


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row: the rate, the stages alone, and the slower stage's share."""
    return [
        ["run", "images/s", "decoding alone", "forward pass alone", "slower stage ÷ whole run", "launching process"],
        [
            f"{line['model']}, {line['images']:,} JPEGs ({line['pictures']})",
            f"{line['images_a_second']:,.1f}",
            f"{line['decode_seconds']:.1f} s",
            f"{line['forward_seconds']:.1f} s",
            f"{line['share']:.2f}",
            f"{line['launching_microseconds']:.0f} µs an image" if "launching_microseconds" in line else "–",
        ],
    ]


def headline(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: images a second, and the slower stage alone."""
    slower = "the forward pass" if line["forward_seconds"] >= line["decode_seconds"] else "decoding"
    return (
        f"{line['model']}, fp32: {line['images_a_second']:,.0f} images/s from JPEGs to a finished store",
        f"{slower} alone takes {line['share']:.2f} of the run's time",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
