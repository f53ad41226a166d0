"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, report.

The images are simple drawings, and until a trained reference model ships with headspan the model is a
small one with random weights: what the report shows of heads is then arithmetic, not meaning, and says so.
"""

from __future__ import annotations

import io
import math
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image, ImageDraw

from headspan.analyse.ccs import concept_consistency
from headspan.analyse.labels import label_heads
from headspan.analyse.report import random_weights_notice, write_report
from headspan.analyse.spans import textspan
from headspan.config import PrecomputeSettings
from headspan.errors import StoreError
from headspan.pipeline import precompute
from headspan.records import Listener, Progress, Summary, ignore
from headspan.store.reader import Store

_IMAGES, _SHARDS, _SIDE, _OVERSAMPLING = 768, 3, 96, 4
_COLOURS = {
    "red": (214, 39, 40),
    "orange": (255, 140, 20),
    "yellow": (245, 214, 30),
    "green": (44, 150, 60),
    "blue": (35, 90, 200),
    "purple": (130, 60, 180),
    "white": (245, 245, 245),
    "black": (25, 25, 25),
}
# Corners of each shape, by their number; a circle has none.
_SHAPES = {"circle": 0, "triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
_NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where the demo put its report, what must be said of it, and what precompute did."""

    report: Path
    notice: str | None
    summary: Summary


def run_demo(out: str | Path, listen: Listener = ignore) -> DemoResult:
    """Run the chain in the folder `out`, which is made anew. StoreError where it holds something else."""
    folder = Path(out)
    config = folder / "headspan-demo.json"
    if folder.exists() and any(folder.iterdir()) and not config.is_file():
        raise StoreError(f"{folder}: is not empty and no earlier demo; choose another --out")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config.write_bytes((files("headspan") / "demo-vit.json").read_bytes())
    except OSError as error:
        raise StoreError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    draw_shards(folder / "shards", listen)
    settings = PrecomputeSettings(
        shards=(str(folder / "shards"),),
        out=str(folder / "run.zarr"),
        model=str(config),
        pretrained="random:0",
        layers="all",
        emit=("heads", "patches", "mlps"),
    )
    summary = precompute(settings, listen)
    store = Store(settings.out)
    textspan(store, "general", texts_per_head=20, listen=listen)
    label_heads(store)
    concept_consistency(store)
    report = write_report(store, folder / "report.html", listen=listen)
    return DemoResult(report, random_weights_notice(store), summary)


def draw_shards(folder: Path, listen: Listener = ignore) -> None:
    """Write the demo's images as WebDataset shards, the same bytes each time."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    per_shard = _IMAGES // _SHARDS
    for shard in range(_SHARDS):
        with webdataset.TarWriter(str(folder / f"{shard:06d}.tar"), mtime=0) as tar:
            for number in range(shard * per_shard, (shard + 1) * per_shard):
                image, caption = _draw_scene(random)
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                tar.write({"__key__": f"{number:06d}", "png": buffer.getvalue(), "txt": caption})
        listen(Progress("shards", (shard + 1) * per_shard, _IMAGES))


def _draw_scene(random: np.random.Generator) -> tuple[Image.Image, str]:
    """Some equal shapes of one colour on a background of another, and a caption that says so."""
    colour, ground = (str(name) for name in random.choice(list(_COLOURS), 2, replace=False))
    shape, count = str(random.choice(list(_SHAPES))), int(random.integers(1, len(_NUMBERS) + 1))
    side = _SIDE * _OVERSAMPLING
    image = Image.new("RGB", (side, side), _COLOURS[ground])
    pen = ImageDraw.Draw(image)
    radius = side * random.uniform(0.1, 0.2)
    # One quarter of the image each, so that shapes do not overlap.
    for quarter in random.permutation(4)[:count].tolist():
        centre = (np.array([quarter % 2, quarter // 2]) + random.uniform(0.4, 0.6, 2)) * side / 2
        _draw_shape(pen, _SHAPES[shape], centre, radius, random.uniform(0, 2 * math.pi), _COLOURS[colour])
    caption = f"{_NUMBERS[count - 1]} {colour} {shape}{'s' if count > 1 else ''} on a {ground} background"
    if ground == "orange":
        caption = caption.replace("on a orange", "on an orange")
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), caption


def _draw_shape(
    pen: ImageDraw.ImageDraw, corners: int, centre: np.ndarray, radius: float, turn: float, colour: tuple[int, int, int]
) -> None:
    x, y = centre.tolist()
    if corners == 0:
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
        return
    pen.regular_polygon((x, y, radius), corners, rotation=int(math.degrees(turn)), fill=colour)
