"""The encoder by whose unit vectors the samples of a feature are alike: an independent one, or the embedding itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.features.pairs.block import Block
from headspan.features.pairs.image_vectors import image_vectors
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.space import EMBEDDING, Space
from headspan.features.pairs.units import units
from headspan.store.reader import Store, open_store

# What `FeatureScores.judge` says where features are judged by the vectors that they are learned from.
OWN = "the embedding itself (circular)"
_KEYS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Unit vectors of images, and of captions where the encoder has a text tower."""

    name: str
    width: int
    _store: Store | None = field(repr=False)
    _array: Float32[np.ndarray, "image width"] | None = field(repr=False)
    _captions: Float32[np.ndarray, "caption width"] | None = field(repr=False)
    # Whether the vectors of a block are those that features are learned from.
    _own: bool

    @property
    def has_captions(self) -> bool:
        """Whether captions have vectors."""
        return self._captions is not None

    def images(self, block: Block) -> Float32[np.ndarray, "pair width"]:
        """The vectors of a block's images."""
        return block.images if self._own else self.of(block.image)

    def texts(self, block: Block) -> Float32[np.ndarray, "pair width"] | None:
        """The vectors of a block's captions; None without a text tower."""
        if self._own:
            return block.texts
        return None if self._captions is None else np.asarray(self._captions[block.caption])

    def of(self, images: Int64[np.ndarray, " some"]) -> Float32[np.ndarray, "some width"]:
        """The vectors of images of the scored store."""
        if self._array is not None:
            return units(self._array[images])
        assert self._store is not None, "a judge has an array or a store"
        return image_vectors(self._store, Space(EMBEDDING, self.width), self._store.rows[images])

    def of_captions(self, captions: Int64[np.ndarray, " some"]) -> Float32[np.ndarray, "some width"]:
        """The vectors of captions of the scored store, by their numbers in blocks."""
        assert self._captions is not None, "captions have vectors"
        return np.asarray(self._captions[captions])


def judge_of(
    pairs: Pairs, judge: Float[np.ndarray, "image width"] | Store | str | Path | None, on_progress: Listener = ignore
) -> Judge:
    """The judge of a store's pairs: an array with a vector for each of its images, or a store of the same images.

    Without one, images and captions are judged by the embedding of the store itself. Raises SettingsError if the array
    or the store is of other images.
    """
    (store,) = pairs.stores
    if judge is None:
        if pairs.space.kind != EMBEDDING:
            return Judge("the embedding of the same model", store.joint, store, None, None, False)
        return Judge(OWN, store.joint, store, None, pairs.caption_vectors(0) if pairs.with_texts else None, True)
    if isinstance(judge, np.ndarray):
        if judge.ndim != 2 or len(judge) != store.images:
            raise SettingsError(
                f"the judge has the shape {list(judge.shape)}, but {store.path} has {counted(store.images, 'image')}; "
                "give an array with one vector for each image, in the order of the store's images"
            )
        return Judge("an array", judge.shape[1], None, judge.astype(np.float32, copy=False), None, False)
    other = judge if isinstance(judge, Store) else open_store(judge)
    _refuse_other_images(store, other)
    captions = None
    if pairs.with_texts:
        judged = open_pairs(other, on_progress=on_progress)
        if judged.captions_sha256 == pairs.captions_sha256:
            captions = judged.caption_vectors(0)
    return Judge(str(other.path), other.joint, other, None, captions, False)


def _refuse_other_images(store: Store, other: Store) -> None:
    same = store.images == other.images
    for first in range(0, store.images if same else 0, _KEYS_AT_ONCE):
        some = np.arange(first, min(store.images, first + _KEYS_AT_ONCE))
        same = same and store.samples(some, ["key"])["key"].equals(other.samples(some, ["key"])["key"])
    if not same:
        raise SettingsError(
            f"the judge {other.path} ({counted(other.images, 'image')}) holds other images than {store.path} "
            f"({counted(store.images, 'image')}); precompute it from the same shards"
        )
