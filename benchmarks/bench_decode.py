"""How many JPEGs a second does one core decode, by each decoder, and how far apart are the pixels?

Both decoders run alternately in one thread. The thread's processor time is measured, so other load does not count. Then
one and two worker processes decode the pictures from shards, by turns, as for a tower on a GPU; their start is not
counted. The pictures are smooth colours with some noise, 500 × 375 at quality 90, or those of the shards that
HEADSPAN_PHOTOS names; the line says which.
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import benchmark
from benchmarks.pictures import write_shards
from headspan.config import DECODERS, Preprocess
from headspan.decode.exact import open_image
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.routes import Route, route
from headspan.shards.open_images import open_images
from headspan.shards.plan import list_samples
from headspan.shards.samples import Sample, SampleSpan, wanted
from headspan.shards.urls import expand, stored_names

QUESTION = "JPEGs decoded by one core"
DUE_TO = (
    "With `fast`, libjpeg-turbo writes into an array and torch resizes the bytes; `exact` decodes and resizes with "
    "PIL, bit for bit as open_clip does."
)
# Images a second of two worker processes, divided by those of one.
MARK = 1.9
_SPAN_IMAGES = 32


def run(toy: bool) -> dict[str, Any]:
    """Images a second of each decoder, and the difference of their pixels in grey levels."""
    photos = "" if toy else os.environ.get("HEADSPAN_PHOTOS", "")
    pictures = _photographs(photos) if photos else [_picture(seed) for seed in range(3 if toy else 48)]
    routes = {name: route(name) for name in DECODERS if name != "gpu"}
    preprocess = Preprocess()
    spent: dict[str, list[float]] = {name: [] for name in routes}
    pixels: dict[str, list[np.ndarray]] = {}
    # The first round warms up.
    for number in range(3 if toy else 11):
        for name, fill in routes.items():
            began = time.thread_time()
            pixels[name] = [_pixels(fill, data, preprocess) for data in pictures]
            if number:
                spent[name].append(time.thread_time() - began)
    rates = {name: len(pictures) / float(np.median(times)) for name, times in spent.items()}
    differences = [np.abs(fast.astype(int) - exact) for fast, exact in zip(*pixels.values(), strict=True)]
    return {
        "pictures": "photographs of HEADSPAN_PHOTOS" if photos else "smooth colours under noise, 500 × 375",
        "images": len(pictures),
        **{f"{name}_images_a_second": round(rate, 1) for name, rate in rates.items()},
        "times_faster": round(rates["fast"] / rates["exact"], 3),
        "mean_difference": round(float(np.mean([each.mean() for each in differences])), 5),
        "largest_mean_difference": round(float(max(each.mean() for each in differences)), 5),
        "largest_difference": int(max(each.max() for each in differences)),
        **_workers(
            pictures, preprocess, "exact" if toy else "fast", images=96 if toy else 3_072, rounds=1 if toy else 3
        ),
        "mark": MARK,
    }


def _workers(
    pictures: list[bytes], preprocess: Preprocess, name: str, images: int, rounds: int
) -> dict[str, int | float]:
    """Images a second of one and of two worker processes."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "shards", pictures, images)
        samples: list[Sample] = []
        urls = stored_names(expand([str(Path(folder) / "shards")]))
        for _, found in list_samples(urls, on_note=lambda note: None):
            samples += found
        for _ in range(rounds):
            for workers, measured in rates.items():
                measured.append(_rate(ProcessDecoder(name, preprocess, 256 << 20, _SPAN_IMAGES, workers), samples))
    one, two = (float(np.median(rates[workers])) for workers in (1, 2))
    return {
        "one_worker_images_a_second": round(one, 1),
        "two_workers_images_a_second": round(two, 1),
        "two_workers_times_one": round(float(np.median(np.divide(rates[2], rates[1]))), 3),
    }


def _rate(decoder: ProcessDecoder, samples: list[Sample]) -> float:
    """Images a second between the first tenth and the end, when all processes have started."""
    spans = [SampleSpan.of(samples[first : first + _SPAN_IMAGES]) for first in range(0, len(samples), _SPAN_IMAGES)]
    began, warm = 0.0, len(spans) // 10 + 1
    for number, span in enumerate(decoder.decode(spans), 1):
        span.good.release()
        if number == warm:
            began = time.perf_counter()
    return (len(spans) - warm) * _SPAN_IMAGES / (time.perf_counter() - began)


def _pixels(fill: Route, data: bytes, preprocess: Preprocess) -> np.ndarray:
    pixels = np.empty((*preprocess.size, 3), np.uint8)
    fill(data, open_image(data, preprocess), preprocess, pixels)
    return pixels


def _picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.float64)
    file = io.BytesIO()
    noisy = np.clip(smooth + random.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def _photographs(shards: str) -> list[bytes]:
    found = []
    for shard, samples in list_samples(stored_names(expand([shards])), on_note=lambda note: None):
        with open_images(shard.url) as reader:
            images = wanted(list(samples), reader.needs_members)
            found += [encoded for encoded, _ in reader.read(images)]
    return found


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """One row: the rates of both decoders, and the difference of their pixels."""
    return [
        [
            "pictures",
            "`fast`",
            "`exact`",
            "times faster",
            "difference in grey levels: mean, largest",
            "worker processes: one, two",
        ],
        [
            f"{line['images']} × {line['pictures']}",
            f"{line['fast_images_a_second']:,.0f} images/s",
            f"{line['exact_images_a_second']:,.0f} images/s",
            f"{line['times_faster']:.1f}×",
            f"{line['mean_difference']:.4f}, {line['largest_difference']}",
            _shown_workers(line),
        ],
    ]


def _shown_workers(line: Mapping[str, Any]) -> str:
    if "two_workers_times_one" not in line:
        return "–"
    one, two = line["one_worker_images_a_second"], line["two_workers_images_a_second"]
    return f"{one:,.0f}, {two:,.0f} images/s ({line['two_workers_times_one']:.2f}×)"


if __name__ == "__main__":
    benchmark(QUESTION, run)
