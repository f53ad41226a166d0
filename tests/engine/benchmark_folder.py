"""A folder in CLIP-benchmark's layout, made of scenes of the image world as its own converter makes one.

Tars are written by webdataset's ShardWriter: keys `s0000000`, lossless WebP, and `.cls` members; the names and their
places are those of CLIP_benchmark's webdataset_builder.py.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import webdataset
from PIL import Image

from headspan.world import Scene
from headspan.world.drawing import render
from headspan.world.factors import COLOURS

TEMPLATES = ("a {c} shape", "a picture of a {c} object.", "{c}")


def write_benchmark_folder(folder: Path, scenes: Sequence[Scene], images_per_tar: int) -> list[int]:
    """Write scenes with the colour of their main object as the class; return the class of each."""
    (folder / "test").mkdir(parents=True)
    (folder / "classnames.txt").write_text("".join(f"{name}\n" for name in COLOURS))
    (folder / "zeroshot_classification_templates.txt").write_text("".join(f"{each}\n" for each in TEMPLATES))
    classes = [list(COLOURS).index(scene.things[0].colour) for scene in scenes]
    pixels = render(scenes, 64)
    sink = webdataset.ShardWriter(str(folder / "test" / "%d.tar"), maxcount=images_per_tar, verbose=0)
    for index, (image, number) in enumerate(zip(pixels, classes, strict=True)):
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "webp", lossless=True)
        sink.write({"__key__": f"s{index:07d}", "webp": encoded.getvalue(), "cls": number})
    tars = sink.shard
    sink.close()
    (folder / "test" / "nshards.txt").write_text(f"{tars}\n")
    return classes
