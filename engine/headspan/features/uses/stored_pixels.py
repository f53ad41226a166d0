"""Decode images of a store again from their shards, to the pixels that its model saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from headspan.errors import SourceError
from headspan.explore.query.image_source import ImageSource
from headspan.originals.encoded_image import by_shard, encoded_sample
from headspan.originals.find_shards import find_shards
from headspan.originals.seen_part import stored_preprocess
from headspan.store.reader import Store
from headspan.store.schema import decoding


def stored_pixels(
    store: Store, images: Int64[np.ndarray, " image"], shards: Sequence[str] = ()
) -> UInt8[np.ndarray, "image height width_px 3"]:
    """The pixels of the images of these indices, decoded, resized and cropped as when the store was made.

    `shards` name all shards, in the order of the run, if they have moved. Images that a GPU decoded are decoded by the
    CPU, to pixels that differ a little. Raises SourceError if an image cannot be read or decoded.
    """
    preprocess, decode = stored_preprocess(store.attributes["preprocess"]), decoding(store.attributes)
    table = store.samples(images, ["key", "url", "member", "offset", "size_bytes"]).to_pylist()
    samples = [{**sample, "place": place} for place, sample in enumerate(table)]
    urls, _ = find_shards(store, shards)
    found = np.empty((len(images), *preprocess.size, 3), np.uint8)
    for url, wanted, opened in by_shard(store, samples, urls, urls.values() if shards else ()):
        with opened() as reader:
            for sample in wanted:
                encoded, missing = encoded_sample(reader, sample)
                if missing is not None:
                    raise SourceError(f"{url}: {sample['member']}: {missing}")
                source = ImageSource(str(sample["key"]), encoded, None)
                found[sample["place"]] = source.decoded(preprocess, "fast" if decode == "gpu" else decode)
    return found
