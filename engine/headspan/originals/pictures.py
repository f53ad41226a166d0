"""Images as the model sees them, as small WebP files, read from the shards of a store.

Each shard is read once, from front to back. An image that cannot be read is reported with the reason. Stores may come
from other people: a command (`pipe:`) that a store names is never run, and a network address is read only if the caller
names it.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.config import Preprocess
from headspan.decode.exact import Undecodable, preprocess_image
from headspan.errors import SourceError
from headspan.originals.encoded_image import by_shard, encoded_sample
from headspan.originals.seen_part import stored_preprocess
from headspan.shards.images import ImageReader
from headspan.store.reader import Store

# The longer side in pixels and the quality of a picture.
LARGEST = (224, 80)
# How many encoded images are in memory at once.
_AT_ONCE = 64


def read_images(
    store: Store,
    samples: Sequence[Mapping[str, Any]],
    urls: Mapping[str, str] | None = None,
    given: Collection[str] = (),
) -> tuple[dict[int, bytes], dict[int, str]]:
    """Pictures by row, and the reason for each row without one.

    `samples` are rows of the store's table. `urls` gives the present address of each shard by its name in the store;
    without it, the names are the addresses. A remote shard is read only if its URL is among `given`, the URLs that the
    caller named.
    """
    known = stored_preprocess(store.attributes["preprocess"])
    images: dict[int, bytes] = {}
    failed: dict[int, str] = {}
    for url, wanted, opened in by_shard(store, samples, urls or {}, given):
        try:
            for row, member, found in _pictures(opened(), wanted, known):
                if isinstance(found, bytes):
                    images[row] = found
                else:
                    failed[row] = f"{url}: {member}: {found}"
        except SourceError as error:
            failed |= {sample["row"]: str(error) for sample in wanted if sample["row"] not in images}
    return images, failed


def _pictures(
    images: ImageReader, wanted: Sequence[Mapping[str, Any]], preprocess: Preprocess
) -> Iterator[tuple[int, str, bytes | Undecodable]]:
    """Row, member, and picture or error of each sample of a shard. Raises SourceError if the shard cannot be read."""

    def picture(image: tuple[bytes, str | None]) -> bytes | Undecodable:
        encoded, no_bytes = image
        try:
            if no_bytes is not None:
                raise Undecodable(no_bytes)
            return encode(preprocess_image(encoded, preprocess), *LARGEST)
        except Undecodable as error:
            return error

    with images, ThreadPoolExecutor() as threads:
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            encoded = [encoded_sample(images, sample) for sample in some]
            for sample, found in zip(some, threads.map(picture, encoded), strict=True):
                yield sample["row"], sample["member"], found


def encode(pixels: UInt8[np.ndarray, "height width 3"], side: int, quality: int) -> bytes:
    """The image as WebP, with `side` pixels on its longer side if it has more."""
    image = Image.fromarray(pixels)
    # Larger images are reduced, and smaller ones stay as the model sees them.
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()
