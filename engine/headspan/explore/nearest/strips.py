"""Neighbours as rows of pictures, each with its key and score, the query first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pil

from headspan.errors import counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.nearest.neighbours import Neighbours
from headspan.explore.nearest.property_neighbours import PropertyNeighbours
from headspan.explore.query.image_source import image_source
from headspan.explore.query.query_image import Image, QueryImage
from headspan.originals.find_shards import find_shards, missing_note
from headspan.originals.pictures import read_images
from headspan.originals.read_pictures import pixels_of
from headspan.originals.seen_part import stored_preprocess
from headspan.plots.strips import Strip, Tile, draw_strips
from headspan.store.reader import Store
from headspan.store.schema import decoding

_Pixels = UInt8[np.ndarray, "height width 3"]


def neighbour_strips(
    found: Neighbours | PropertyNeighbours,
    query: Image | QueryImage | None = None,
    text: str | None = None,
    on_progress: Listener = ignore,
    *,
    shards: Sequence[str] = (),
) -> Pil.Image:
    """The pictures of neighbours, as the model sees them, in a row for each of `found`'s columns; the query first.

    `query` is the image that was asked about, or `text` the text. Pictures are read from the shards, which `shards`
    name if they have moved. If some cannot be read, their places say so, and one event says why.
    """
    columns = (
        [("nearest images", found)]
        if isinstance(found, Neighbours)
        else [(each.title, each.neighbours) for each in found.columns]
    )
    store = columns[0][1].store
    asked = query.image if isinstance(query, QueryImage) else query
    stored = [] if asked is None or isinstance(asked, str | Path | Pil.Image | np.ndarray) else [int(asked)]
    wanted = dict.fromkeys([*stored, *(int(image) for _, each in columns for image in each.images)])
    pictures = stored_pictures(store, list(wanted), shards, on_progress, "neighbours")
    strips = [
        Strip(
            title,
            tuple(
                Tile(pictures.get(image), (key, f"{score:.4g}"))
                for image, key, score in zip(each.images.tolist(), each.keys, each.scores, strict=True)
            ),
        )
        for title, each in columns
    ]
    return draw_strips(_query_tile(store, query, text, stored, pictures), strips)


def _query_tile(
    store: Store,
    query: Image | QueryImage | None,
    text: str | None,
    stored: Sequence[int],
    pictures: dict[int, _Pixels],
) -> Tile:
    if stored:
        (key,) = store.samples(list(stored), ["key"])["key"].to_pylist()
        return Tile(pictures.get(stored[0]), (key,))
    if isinstance(query, str | Path | Pil.Image | np.ndarray):
        source = image_source(query)
        attributes = store.attributes
        return Tile(source.decoded(stored_preprocess(attributes["preprocess"]), decoding(attributes)), (source.name,))
    words = query.name if isinstance(query, QueryImage) else text or ""
    return Tile(None, (), words)


def stored_pictures(
    store: Store, images: Sequence[int], shards: Sequence[str], on_progress: Listener, complete: str
) -> dict[int, _Pixels]:
    """The pictures of a store's images that can be read, by image; `complete` is what does not need them."""
    samples = store.samples(list(images)).to_pylist()
    urls, lost = find_shards(store, shards)
    encoded, failed = read_images(store, samples, urls, urls.values() if shards else ())
    if failed:
        needed = [name for name in lost if name in {sample["url"] for sample in samples}]
        why = missing_note(needed, len(urls)) if needed else next(iter(failed.values()))
        todo = "" if shards else "; --shards says where the shards are now"
        what = f"{len(failed):,} of {counted(len(samples), 'picture')}"
        on_progress(Progress(NOTE, 0, None, f"{what} cannot be shown, but {complete} are complete: {why}{todo}"))
    pictures = {}
    for image, sample in zip(images, samples, strict=True):
        if sample["row"] in encoded:
            pictures[image] = pixels_of(encoded[sample["row"]])
    return pictures
