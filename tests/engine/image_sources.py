"""The same images as tars, as a folder, as Parquet files and as a list, for tests that compare them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from headspan.shards.image_folder import keys_of
from tests.conftest import encoded_image
from tools.make_shards import make_shards

# Paths in the folder: nested, with dots, in two extensions, and not ASCII. The third is not an image inside.
NAMES = ("b.jpg", "a/0.jpg", "a/broken.jpg", "a/ünïcode 写真.jpg", "a/x.y.jpg", "c/d/e/deep.png", "z.jpg")
BROKEN = "a/broken.jpg"
SOURCES = ("tars", "folder", "parquet", "list", "streamed parquet")

TINY: dict[str, Any] = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 16, "layers": 2, "head_width": 8},
    "text_cfg": {"width": 16, "layers": 1, "heads": 2, "context_length": 16},
}


def write_folder(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """A folder of images of awkward sizes, of which one is broken and two have captions."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if name.endswith(".png") else "JPEG"
        content = encoded_image(number, 20 + 7 * number, 33 + number, kind)
        path.write_bytes(b"no image" if name == BROKEN else content)
    (folder / "b.txt").write_text("a caption")
    (folder / "z.txt").write_text("ein Titel: größer")
    return folder


def write_parquet(folder: Path, path: Path, group: int = 2) -> Path:
    """The folder's images in the order of their paths, as Hugging Face's struct with bytes and path."""
    names = sorted(NAMES)
    captions = {name: (folder / name).with_suffix(".txt") for name in names}
    table = pa.table(
        {
            "image": [{"bytes": (folder / name).read_bytes(), "path": Path(name).name} for name in names],
            "caption": [captions[name].read_text() if captions[name].exists() else None for name in names],
            "key": keys_of(names),
            "width": pa.array(range(len(names)), pa.int32()),
        }
    )
    # Not compressed and without statistics, so that the file holds each image once, as it is.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, row_group_size=group, **plain)
    return path


def write_list(folder: Path, path: Path) -> Path:
    """A CSV file of the folder's images, with captions and keys."""
    names = sorted(NAMES)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "caption", "id"])
        for name, key in zip(names, keys_of(names), strict=True):
            text = (folder / name).with_suffix(".txt")
            place = folder.relative_to(path.parent) / name
            writer.writerow([place.as_posix(), text.read_text() if text.exists() else "", key])
    return path


def write_sources(folder: Path) -> dict[str, list[str]]:
    """The same images as each of SOURCES: what a run names as shards."""
    images = write_folder(folder / "images")
    make_shards(images, folder / "tars", images_per_shard=3)
    (folder / "parquet").mkdir()
    return {
        "tars": [str(folder / "tars")],
        "folder": [str(images)],
        "parquet": [str(write_parquet(images, folder / "parquet" / "all.parquet"))],
        "list": [str(write_list(images, folder / "list.csv"))],
        "streamed parquet": [str(write_parquet(images, folder / "parquet" / "large.parquet", 5))],
    }


def write_model(folder: Path) -> str:
    """A tiny model's config."""
    config = folder / "headspan-tiny.json"
    config.write_text(json.dumps(TINY))
    return str(config)
