"""Read images of a store as the report shows them, for plots and notebooks."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.errors import StoreError
from headspan.originals.find_shards import find_shards
from headspan.originals.pictures import read_images
from headspan.store.reader import Store


def read_pictures(
    store: Store, images: Sequence[int], shards: Sequence[str] = ()
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The images of these indices as the model sees them, cropped and resized, at most 224 pixels a side, as uint8.

    They are read from the shards, which are found from any working folder, also if they have moved together with the
    store; otherwise `shards` says where all of them are now. They are for looking at: WebP compression changes them a
    little. Raises StoreError if one of them cannot be read, and SettingsError if an index is not in the store.
    """
    wanted = [int(image) for image in images]
    if not wanted:
        return []
    samples = store.samples(wanted).to_pylist()
    # An image that is asked for twice is read once.
    once = list({sample["row"]: sample for sample in samples}.values())
    urls, _ = find_shards(store, shards)
    encoded, missing = read_images(store, once, urls, urls.values() if shards else ())
    if missing:
        why = next(iter(missing.values()))
        todo = "" if shards else "; shards= says where the shards are now"
        raise StoreError(f"{store.path}: {len(missing):,} of {len(once):,} images cannot be read (first: {why}){todo}")
    pictures = {row: pixels_of(picture) for row, picture in encoded.items()}
    return [pictures[sample["row"]] for sample in samples]


def pixels_of(picture: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a picture that `read_images` has encoded."""
    with Image.open(io.BytesIO(picture)) as image:
        return np.asarray(image.convert("RGB"))
