"""How many JPEGs does one core turn into a model's pixels a second, on each route, and how far apart are the pixels?

Both routes by turns in one thread, whose processor time is taken, so that what else the machine does does not count.
The pictures are smooth colours under some noise, 500 × 375 at quality 90, or, as told in the line, those of the
shards that HEADSPAN_PHOTOS names.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import benchmark
from headspan.config import DECODERS, Preprocess
from headspan.decode.exact import PIXELS_LIMIT, open_image
from headspan.decode.routes import Route, route
from headspan.shards.plan import list_samples
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand, stored_names

QUESTION = "JPEGs decoded by one core"


def run(toy: bool) -> dict[str, Any]:
    """Images a second of each route, and the difference of their pixels in grey levels."""
    photos = "" if toy else os.environ.get("HEADSPAN_PHOTOS", "")
    pictures = _photographs(photos) if photos else [_picture(seed) for seed in range(3 if toy else 48)]
    routes = {name: route(name) for name in DECODERS}
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
    }


def _pixels(fill: Route, data: bytes, preprocess: Preprocess) -> np.ndarray:
    pixels = np.empty((*preprocess.size, 3), np.uint8)
    fill(data, open_image(data, preprocess, PIXELS_LIMIT), preprocess, pixels)
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
        with open_shard(shard.url) as reader:
            found += [reader.read_at(sample.offset, sample.size_bytes) for sample in samples]
    return found


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the default's rate, and the exact route's."""
    return (
        f"{line['fast_images_a_second']:,.0f} images/s ({line['pictures']})",
        f"--decode exact: {line['exact_images_a_second']:,.0f} images/s, so {line['times_faster']:.1f}× faster; pixels "
        f"differ by {line['mean_difference']:.4f} grey levels on average, by {line['largest_difference']} at most",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
