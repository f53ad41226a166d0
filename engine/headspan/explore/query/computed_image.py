"""What the model of a store computes from an image that is not in the store, or whose patches are not.

It is kept in the user's cache folder, so that a second question about the image needs neither model nor shard. The key
of a new image is the checksum of its file or pixels. A stored image is recognised by its embedding, so that its shard
is not read for the key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from headspan.errors import SourceError, percent
from headspan.events import Listener
from headspan.explore.query.image_cache import find_image, keep_image
from headspan.explore.query.image_source import ImageSource
from headspan.originals.encoded_image import encoded_image
from headspan.originals.seen_part import stored_preprocess
from headspan.store.reader import Store
from headspan.store.schema import decoding, without_heads

# What decides the numbers of an image, beside the image.
_KEYS = ("weights_sha256", "model", "model_config", "tower", "preprocess", "image_size", "precision")
# The embedding of another image is farther away; 16-bit passes and other libraries for decoding differ by 2 %.
_SAME_IMAGE = 0.2


def computed(
    store: Store, source: ImageSource, with_patches: bool, on_progress: Listener, weights: str | Path | None
) -> dict[str, np.ndarray]:
    """The arrays `norm`, `embedding`, `heads` and perhaps `patches` of an image that is not in the store.

    Raises SourceError if the image cannot be decoded, SettingsError if its numbers overflow, and ModelError if the
    model cannot be loaded or is not the one that made the store.
    """
    key = _key(store, source.checksum())
    found = find_image(key, _shapes(store, with_patches))
    if found is None:
        found = _encoded(store, source, with_patches, on_progress, weights)
        keep_image(key, found)
    return found


def patches_again(
    store: Store, image: int, name: str, on_progress: Listener, weights: str | Path | None, shards: Sequence[str]
) -> Float16[np.ndarray, "layer token head head_dim"]:
    """The patches of a stored image, which is read again from its shard.

    Raises SourceError if it cannot be read or is another image now, and the errors of `computed`.
    """
    key = _stored_key(store, image)
    found = find_image(key, _shapes(store, with_patches=True))
    if found is not None:
        return found["patches"]
    found = _encoded(store, _read_again(store, image, name, shards), True, on_progress, weights)
    embedding = store.contents.row("embedding", store.row_of(image))
    distance = float(np.linalg.norm(found["embedding"] - embedding) / np.linalg.norm(embedding))
    if not distance < _SAME_IMAGE:
        raise SourceError(
            f"{store.path}: image {image} ({name}) is another image in its shard now, since its embedding differs by "
            f"{percent(distance)} from the stored one; restore the shard"
        )
    keep_image(key, found)
    return found["patches"]


def refuse_unreadable(store: Store, image: int, name: str, shards: Sequence[str]) -> None:
    """Raise SourceError if `patches_again` would have to read an image that cannot be read; no model is loaded."""
    if find_image(_stored_key(store, image), _shapes(store, with_patches=True)) is None:
        _read_again(store, image, name, shards)


def _read_again(store: Store, image: int, name: str, shards: Sequence[str]) -> ImageSource:
    try:
        return ImageSource(name, encoded_image(store, image, shards), None)
    except SourceError as error:
        todo = "correct --shards" if shards else "name its shards with --shards"
        raise SourceError(
            f"{store.path}: holds no patches, and image {image} ({name}) cannot be read again for its map ({error}); "
            f"{todo}; queries for neighbours and scores need only the store"
        ) from error


def _stored_key(store: Store, image: int) -> str:
    row = store.row_of(image)
    numbers = store.contents.row("embedding", row).tobytes() + store.contents.row("norm", row).tobytes()
    return _key(store, f"stored {hashlib.sha256(numbers).hexdigest()}")


def _encoded(
    store: Store, source: ImageSource, with_patches: bool, on_progress: Listener, weights: str | Path | None
) -> dict[str, np.ndarray]:
    # The image is decoded first, since that fails sooner.
    pixels = source.decoded(stored_preprocess(store.attributes["preprocess"]), decoding(store.attributes))
    # Imported here, since only this needs the model and torch.
    from headspan.run.image_encoder import image_encoder

    return image_encoder(store, weights, on_progress).encode(pixels, store.layers, with_patches)


def _key(store: Store, image: str) -> str:
    settings = [store.attributes.get(name) for name in _KEYS]
    parts = [settings, decoding(store.attributes), store.layers, image]
    # Added only here, so that the images of other stores that were kept before stay known.
    if without := without_heads(store.attributes):
        parts.append(without)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _shapes(store: Store, with_patches: bool) -> dict[str, tuple[int, ...]]:
    layers, heads = len(store.layers), store.heads_per_layer
    shapes: dict[str, tuple[int, ...]] = {
        "norm": (3,),
        "embedding": (store.joint,),
        "heads": (layers, heads, store.head_dim),
    }
    return {**shapes, "patches": (layers, store.tokens, heads, store.head_dim)} if with_patches else shapes


def forget_models() -> None:
    """Free the memory of the models that queries about images and texts have loaded into this process."""
    from headspan.run import image_encoder

    image_encoder.forget_models()
