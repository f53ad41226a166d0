"""Some of the images that a store shows, and how they were chosen, in words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int64
from numpy.typing import ArrayLike

from headspan.errors import SettingsError, counted, one_line
from headspan.store.opened import OpenStore


@dataclass(frozen=True, repr=False, eq=False)
class Selection:
    """Some of a store's images. `Store.select` makes one from keys, words of captions, or classes."""

    # Their rows in the store's Zarr arrays, ascending, each once.
    rows: Int64[np.ndarray, " image"]
    # Which images these are, to follow their number: "whose caption has the word dog".
    words: str

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"Selection({self.description})"

    @property
    def description(self) -> str:
        """The number of images and which they are: "2,314 images whose caption has the word dog"."""
        return f"{counted(len(self), 'image')} {self.words}"

    @cached_property
    def sha256(self) -> str:
        """A checksum of the rows, which tells selections of one store apart."""
        return hashlib.sha256(np.ascontiguousarray(self.rows, "<i8").tobytes()).hexdigest()

    def images(self, store: OpenStore) -> Int64[np.ndarray, " image"]:
        """Their indices among the images that `store` shows. Raises SettingsError if it does not show one of them."""
        found = store.images_of_rows(self.rows)
        if (found < 0).any():
            raise SettingsError(
                f"{store.path}: does not show all of the {self.description}; select the images in this store"
            )
        return found.astype(np.int64)


# What chooses images: a selection, indices, or a mask over the images shown, such as a column of booleans.
Images = Selection | Sequence[int] | ArrayLike

_BY_INDEX = "chosen by index or by a mask"


def chosen_images(store: OpenStore, images: Images | None) -> Int64[np.ndarray, " image"]:
    """The indices of the images to read, without repeats, in the store's order. Raises SettingsError for others.

    `images` are indices, a selection, or a mask over the images shown, as in `store.samples()`; a missing value of the
    mask is false. None stands for all images.
    """
    if images is None:
        return np.arange(store.images)
    if isinstance(images, Selection):
        return images.images(store)
    given = _array(store, images)
    if given.dtype == bool and given.shape == (store.images,):
        return np.flatnonzero(given)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise SettingsError(f"{store.path}: images must be a list of indices, or a mask of {store.images}")
    found = np.unique(given).astype(np.int64)
    if found.size and not (found[0] >= 0 and found[-1] < store.images):
        raise SettingsError(
            f"{store.path}: images {found[0]} to {found[-1]} do not all exist; count from 0 to {store.images - 1}"
        )
    return found


def selection_of(store: OpenStore, images: Images) -> Selection:
    """The selection of those of `images` that could be used. Raises as `chosen_images`."""
    chosen = chosen_images(store, images)
    rows = store.rows[chosen[usable_images(store, chosen)]].astype(np.int64)
    return Selection(rows, images.words if isinstance(images, Selection) else _BY_INDEX)


def usable_images(store: OpenStore, chosen: Int64[np.ndarray, " image"]) -> Bool[np.ndarray, " image"]:
    """Whether each of these indices is of an image that could be used. A store may be opened with the others too."""
    usable = np.zeros(store.planned_images, bool)
    usable[store.contents.good_rows()] = True
    return usable[store.rows[chosen]]


def _array(store: OpenStore, images: Any) -> np.ndarray:
    """Indices or a mask as an array. Missing values of masks of pyarrow and pandas are false."""
    if hasattr(images, "isna"):
        # A pandas Series, whose booleans may have missing values.
        images = pa.array(images, from_pandas=True)
    if isinstance(images, pa.ChunkedArray):
        images = images.combine_chunks()
    if isinstance(images, pa.Array):
        if pa.types.is_boolean(images.type):
            images = pc.fill_null(images, False)
        return np.asarray(images.to_numpy(zero_copy_only=False))
    try:
        return np.asarray(images)
    except ValueError as error:
        raise SettingsError(
            f"{store.path}: images {one_line(error)}; give a list of indices, or a mask of {store.images}"
        ) from error
