"""Write a Parquet file that embedding-atlas opens: a map of images as one head sees them, or as the embedding does.

Positions are an exact PCA from moments (`space`). Apple's embedding-atlas 0.26 takes the columns by the flags
`--x x --y y --image image --neighbors neighbors --text caption`. The file appears under its name when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headspan.errors import SettingsError
from headspan.escapes import shell_command
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.atlas.columns import IMAGE, HeadOfImage, Pictures, TextOfHead, run_for
from headspan.explore.atlas.columns import NEIGHBOURS as NEIGHBOURS_TYPE
from headspan.explore.atlas.columns import neighbours as neighbours_of
from headspan.explore.atlas.space import Space, principal_space
from headspan.io.targets import new_target, refuse_existing
from headspan.store.export.export import FLAG, Exported, target_of
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.store.selection import Images, selection_of
from headspan.store.tables import read_rows

# Neighbours of each image, and the most images for which they are found unasked.
NEIGHBOURS, NEIGHBOURS_UP_TO = 15, 100_000
# Images of a row group; their pictures are in memory at once. It divides the blocks of `nearest_graph`.
_BLOCK_ROWS = 2048


def export_atlas(
    store: Store | str | Path,
    to: str | Path,
    head: Head | None = None,
    *,
    images: Images | None = None,
    pictures: bool = True,
    neighbours: int | None = None,
    run: str | None = None,
    shards: Sequence[str] = (),
    overwrite: bool = False,
    on_progress: Listener | None = None,
) -> Exported:
    """Write a map of images, which embedding-atlas opens, in bounded memory.

    The file has a row for each usable image, in the store's order: `row`, `key`, `caption`, `class`, `x` and `y`,
    `image` and `neighbors`. In a map of a head, `text` is that of the head's first five texts along which the image is
    furthest from the mean, if there is a TEXTSPAN run. In a map of the embedding, `head` is the head that accounts for
    most of the image's distance from the mean embedding, `head_share` is its part of it, and `label` is its label, if
    there is a run with labels.

    Args:
        store: The store, or its path.
        to: The file to write, such as `atlas.parquet`.
        head: Layer and head whose contributions are mapped; None for the embedding.
        images: Which images: a selection (`store.select`), indices, or a mask. They are also what the map's principal
            directions are of. None for all.
        pictures: Include a small WebP picture of each image, read from its shard. Pictures that cannot be read are
            missing, and `on_progress` is told.
        neighbours: The number of nearest images of each image, by the distance of contributions or unit embeddings, in
            the whole space and not on the map. Every pair of images is compared. None for 15, or for none if there are
            more than 100,000 images; 0 for none.
        run: The run whose texts or labels are written; None for the only one, if there is one.
        shards: Where the shards are now, if they have moved.
        overwrite: Replace an earlier file.
        on_progress: Called with a `headspan.events.Progress` after each block.

    Raises:
        SettingsError: If the head or an image is not in the store, or if it does not vary over the images.
        StoreError: If `to` exists and is not replaced, or cannot be written, or if `run` is named and is not there.
    """
    store, on_progress = store if isinstance(store, Store) else Store(store), on_progress or ignore
    path = target_of(store, to)
    if path.suffix.lower() != ".parquet":
        raise SettingsError(f"{FLAG} {path}: an atlas is a Parquet file, so end its name in .parquet")
    refuse_existing(path, FLAG, overwrite, Path.is_file)
    selection = None if images is None else selection_of(store, images)
    rows = store.contents.good_rows() if selection is None else selection.rows
    space = principal_space(store, head, selection)
    count = _count(len(rows), neighbours, on_progress)
    run = run_for(store, "labels" if head is None else "textspan", run, on_progress)
    said: HeadOfImage | TextOfHead | None = HeadOfImage(store, selection, run) if head is None else None
    if head is not None and run is not None:
        said = TextOfHead(space, run)
    photos = Pictures.of(store, shards, on_progress) if pictures else None
    fields = [("row", pa.int64()), ("key", pa.string()), ("caption", pa.string()), ("class", pa.int64())]
    fields += [("x", pa.float32()), ("y", pa.float32()), *(() if said is None else said.fields)]
    fields += [("image", IMAGE)] * pictures + [("neighbors", NEIGHBOURS_TYPE)] * (count > 0)
    about = _about(space, run, "all images" if selection is None else selection.description)
    schema = pa.schema(fields, metadata={"headspan": json.dumps(about)})
    with (
        new_target(path, FLAG, overwrite, Path.is_file) as staged,
        closing(neighbours_of(space, rows, count, _BLOCK_ROWS, on_progress)) as graph,
        pq.ParquetWriter(staged, schema, compression="zstd", compression_level=1) as writer,
    ):
        for first in range(0, len(rows), _BLOCK_ROWS):
            here = rows[first : first + _BLOCK_ROWS]
            samples = read_rows(store.contents.storage, here, store.contents.size.unit_images)
            columns = [samples[name] for name in ("row", "key", "caption", "label")]
            columns += [pa.array(each.astype(np.float32)) for each in space.plane(here).T]
            columns += [] if said is None else said.columns(here)
            columns += [] if photos is None else [photos.read(samples)]
            columns += [next(graph)] if count else []
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(here))
            on_progress(Progress("export", first + len(here), len(rows)))
    if photos is not None:
        photos.tell_failed(on_progress)
    return Exported(path, "atlas", len(rows), path.stat().st_size)


def open_command(path: Path) -> str:
    """The command that opens an atlas with embedding-atlas."""
    names = pq.read_schema(path).names
    words = ["embedding-atlas", str(path), "--x", "x", "--y", "y", "--text", "caption"]
    for flag in ("image", "neighbors"):
        words += [f"--{flag}", flag] if flag in names else []
    return shell_command(words)


def _count(images: int, neighbours: int | None, on_progress: Listener) -> int:
    """The number of neighbours of each image. Raises SettingsError if there are not so many other images."""
    if neighbours is not None and not 0 <= neighbours < images:
        raise SettingsError(
            f"{neighbours} neighbours among {images:,} images: ask for 1 to {images - 1:,}, or 0 for none"
        )
    if neighbours is None and images > NEIGHBOURS_UP_TO:
        cost = f"to find them, every pair of {images:,} images is compared"
        on_progress(Progress(NOTE, 1, 1, f"no neighbours are written: {cost}; --neighbours {NEIGHBOURS} does so"))
        return 0
    return min(NEIGHBOURS, images - 1) if neighbours is None else neighbours


def _about(space: Space, run: str | None, images: str) -> dict[str, Any]:
    """What the file's metadata say about the map."""
    known = space.store.attributes
    return {
        "version": version("headspan"),
        "store": space.store.path.name,
        **{name: known.get(name) for name in ("model", "pretrained", "weights_sha256")},
        "map_of": "embedding" if space.head is None else "L{}.H{}".format(*space.head),
        "images": images,
        "run": run,
        "variance_shares": [round(float(share), 6) for share in space.shares[:2]],
    }
