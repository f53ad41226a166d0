"""Read a store without torch: contributions in joint space and in head coordinates, and moments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import DTypeLike

from headspan.config import as_ranges
from headspan.decompose.formula import (
    EXTRA_COORDINATES,
    bias_contributions,
    check_convention,
    head_coordinates,
    head_directions,
    mean_and_bias_terms,
    mlp_contributions,
)
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import Listener, ignore
from headspan.io.ranged import RangedStorage
from headspan.store.as_xarray import dataset
from headspan.store.commit_records import COMPLETE
from headspan.store.magnitudes import Magnitudes, magnitudes_of
from headspan.store.moments_file import EmbeddingMoments, MergedMoments
from headspan.store.opened import OpenStore
from headspan.store.schema import EMBEDDING_MOMENTS
from headspan.store.select import select
from headspan.store.selected_moments import embedding_moments_of_rows, moments_of_rows
from headspan.store.selection import Images, Selection, selection_of

if TYPE_CHECKING:
    import xarray as xr


class Store(OpenStore):
    """A store that `precompute` wrote. Layers, heads and images are numbered from 0; layers as in the model.

    Contributions are float32. By default they follow the published convention (`uniform`) and are divided by
    `‖embedding‖`, so that all terms of an image sum to its unit embedding. With `convention="per_term"` each term is
    centred by its own mean, and the output biases and the final norm's bias are terms of their own.

    Methods raise SettingsError if the layer, head, image or array that they read is not stored. Reading damaged files
    raises StoreError.
    """

    @cached_property
    def embedding(self) -> Float32[np.ndarray, "images joint"]:
        """The model's image embeddings, not normalised."""
        return self._read("embedding")

    @cached_property
    def norm(self) -> Float32[np.ndarray, "images 3"]:
        """The final norm's mean `μ` and `s`, and `‖embedding‖`, of each image."""
        return self._read("norm")

    @cached_property
    def mean_and_bias(self) -> Float32[np.ndarray, "3 rows"]:
        """The normalised `mean_and_bias_terms` of every row of the Zarr arrays; NaN if its image is not shown."""
        found = np.full((EXTRA_COORDINATES, self.planned_images), np.nan, np.float32)
        found[:, self._rows] = mean_and_bias_terms(self.norm, normalised=True).T
        return found

    def head(
        self, layer: int, head: int, convention: str = "uniform", normalised: bool = True
    ) -> Float32[np.ndarray, "images joint"]:
        """Return the contributions of one head to the image embeddings, summed over source tokens."""
        coordinates = head_coordinates(self.head_coordinates(layer, head), self.norm, normalised)
        return coordinates @ self.head_directions(layer, head, convention)

    def heads(
        self, layers: Sequence[int] | None = None, convention: str = "uniform", normalised: bool = True
    ) -> Float32[np.ndarray, "images layer head joint"]:
        """Return the contributions of all heads of `layers`, in that order; by default of all stored layers.

        The result takes `images · layers · heads_per_layer · joint · 4` bytes: 10 GB for 50,000 images and four layers
        of ViT-L/14. Raises SettingsError if that exceeds this machine's memory; `head` gives one head at a time.
        """
        chosen = self.layers if layers is None else tuple(layers)
        for layer in chosen:
            self.contents.layer_index(layer)
        shape = (self.images, len(chosen), self.heads_per_layer, self.joint)
        needed, memory = 4 * int(np.prod(shape, dtype=np.int64)), memory_bytes()
        if needed > memory:
            raise SettingsError(
                f"{self.path}: the contributions of {counted(len(chosen) * self.heads_per_layer, 'head')} to "
                f"{counted(self.images, 'image')} take {needed / 1e9:,.1f} GB, but this machine has "
                f"{memory / 1e9:,.1f} GB of memory; name fewer layers, or call head(layer, head) for one head at a time"
            )
        found = np.empty(shape, np.float32)
        for place, layer in enumerate(chosen):
            for head in range(self.heads_per_layer):
                found[:, place, head] = self.head(layer, head, convention, normalised)
        return found

    def head_coordinates(
        self, layer: int, head: int, dtype: DTypeLike = np.float32
    ) -> Float[np.ndarray, "images head_dim"]:
        """Return one head's output `Σ_n α v` in its own coordinates; float16 is the stored type."""
        return self._read("heads", self.contents.layer_index(layer, head), head, dtype=_offered(dtype))

    def head_directions(
        self, layer: int, head: int, convention: str = "uniform"
    ) -> Float32[np.ndarray, "coordinate joint"]:
        """Return the fixed matrix that maps `[Σ α v / s, 1/s, μ/s, 1]` of one head into joint space."""
        index, place = self.contents.layer_index(layer, head), layer - self.all_layers
        return head_directions(self.contents.folded, index, place, head, check_convention(convention))

    def patches(
        self, image: int, layer: int, convention: str = "uniform", normalised: bool = True
    ) -> Float32[np.ndarray, "token head joint"]:
        """Return the contributions of every source token through every head of one layer, for one image."""
        head_outputs = self.patch_coordinates(image, layer)
        norm = np.broadcast_to(self.norm[image], (self.tokens, 3))
        joint = np.empty((self.tokens, self.heads_per_layer, self.joint), np.float32)
        for head in range(self.heads_per_layer):
            coordinates = head_coordinates(head_outputs[:, head], norm, normalised, parts=self.tokens)
            joint[:, head] = coordinates @ self.head_directions(layer, head, convention)
        return joint

    def patch_coordinates(
        self, image: int, layer: int | None = None, dtype: DTypeLike = np.float32
    ) -> Float[np.ndarray, "*layer token head head_dim"]:
        """Return `α v` of every source token and head, for one image; float16 is the stored type.

        Without `layer` the result has a first axis for all stored layers.
        """
        index = () if layer is None else (self.contents.layer_index(layer),)
        row = self.row_of(image)
        return self.contents.row("patches", row, *index, dtype=_offered(dtype)).swapaxes(-3, -2)

    def mlps(self, convention: str = "uniform", normalised: bool = True) -> Float32[np.ndarray, "images term joint"]:
        """Return the contributions of the initial state (term 0) and of every layer's MLP.

        If the model pools by attention, the only term is the pooling's MLP, and there is none without such an MLP.
        """
        if not self.terms:
            return np.zeros((self.images, 0, self.joint), np.float32)
        centred, means = self._read("mlps", dtype=np.float32), self._read("mlp_means")
        folded = self.contents.folded
        return mlp_contributions(centred, means, self.norm, folded, check_convention(convention), normalised)

    def through_pool(self, layer: int, head: int, normalised: bool = True) -> Float32[np.ndarray, "images joint"]:
        """Return what the attention pooling's heads took from a head of an earlier layer, centred by its own mean.

        This is a part of those heads' contributions, not a further term of the embedding. What passes the pooling's MLP
        is not included. Raises SettingsError if it is not stored.
        """
        heads = self.contents.array("through_pool").shape[2]
        if layer not in self.through_pool_layers or not 0 <= head < heads:
            raise SettingsError(
                f"{self.path}: head {head} of layer {layer} is not in through_pool; stored are layers "
                f"{as_ranges(self.through_pool_layers)} with heads 0 to {heads - 1}"
            )
        found = self._read("through_pool", self.through_pool_layers.index(layer), head, dtype=np.float32)
        return found / self.norm[:, 2:] if normalised else found

    def biases(self, normalised: bool = True) -> Float32[np.ndarray, "images bias joint"]:
        """Return the bias terms of the convention `per_term`.

        They are every direct layer's output bias and, last, the final norm's bias, which includes the projection's.
        """
        return bias_contributions(self.norm, self.contents.folded, normalised)

    def select(
        self,
        *,
        keys: str | Path | Sequence[str] | None = None,
        words: str | Sequence[str] | None = None,
        any_word: bool = False,
        classes: int | Sequence[int] | None = None,
        on_progress: Listener = ignore,
    ) -> Selection:
        """Select the usable images that pass every criterion given: by key, words of the caption, or class.

        `keys` are a list, or a text file with a key in each line; all images of a key are chosen. A caption must have
        all of `words`, or with `any_word` one of them, as whole words, in capital or small letters. `classes` are
        numbers of `.cls` members; one of them must be the image's. The samples are scanned once, in bounded memory.

        Raises SettingsError if no image passes, if a key or class is not in the store, or if `words` or `classes` are
        given and no image has a caption or class. `on_progress` is told of keys of images that could not be used.
        """
        return select(self, keys=keys, words=words, any_word=any_word, classes=classes, on_progress=on_progress)

    def moments(self, images: Images | None = None) -> MergedMoments:
        """Return count, sum and Gram matrix of every stored head's normalised coordinates, over all usable images.

        `images` (a selection, indices, or a mask) limits them to some images, whose stored numbers are then read; the
        last ones are kept. Raises StoreError if no unit is finished yet, and SettingsError if there are no such images.
        """
        if images is not None:
            return self._selected_moments(images)
        if "_stored_moments" in self.__dict__ and isinstance(self.contents.storage, RangedStorage):
            # In a bucket it takes requests to ask again whether the store is complete.
            return self._stored_moments
        commits = self.contents.commits
        moments = None if commits.complete else commits.moments()
        # Checked again: another process may have finished the run and deleted its parts in between.
        if commits.complete:
            return self._stored_moments
        if moments is None:
            raise StoreError(f"{self.path}: no unit is finished yet; run the same precompute command to continue")
        return moments

    def embedding_moments(self, images: Images | None = None) -> EmbeddingMoments:
        """Return count, sum and Gram matrix of the unit embeddings `e / ‖e‖` of all usable images, or of `images`.

        Stores of earlier versions do not hold them. They are then computed by a pass over `embedding`, once for this
        object. Raises as `moments` does.
        """
        found = self.moments(images).embedding
        return self._computed_embedding_moments if found is None else found

    def magnitudes(self, covariance: bool = False, images: Images | None = None) -> Magnitudes:
        """Return how much every stored head matters: its shares of the embeddings' variance and squared length.

        `images` limits both the heads' and the embeddings' variance to some images.

        A variance share may exceed 1, and the shares need not sum to 1, because contributions correlate. Both follow
        from `moments` and `embedding_moments`. With `covariance`, the shares `tr Cov(c_h, e) / tr Σ_e`, which sum to 1
        over all components, are computed too, by one pass over `heads` (and `mlps`) in bounded memory. Raises as
        `moments` does.
        """
        rows = self.contents.good_rows() if images is None else selection_of(self, images).rows
        return magnitudes_of(self.contents, self.moments(images), self.embedding_moments(images), covariance, rows)

    def to_xarray(self) -> xr.Dataset:
        """Return the stored arrays as a lazy xarray Dataset of the images shown; see `store.as_xarray`.

        It can be pickled for other processes, and chunked with dask.

        Raises HeadspanError if xarray is not installed.
        """
        return dataset(self.contents, self.rows, self.samples())

    @cached_property
    def _stored_moments(self) -> MergedMoments:
        """The moments that a complete store holds."""
        count, total, gram = (self.contents.values(f"moments/{name}") for name in ("count", "sum", "gram"))
        return MergedMoments(int(count[0]), total, gram, self._stored_embedding_moments(int(count[0])))

    def _stored_embedding_moments(self, count: int) -> EmbeddingMoments | None:
        """Read the moments of the embeddings of a complete store; None if it does not hold them."""
        recorded = self.contents.commits.recorded(COMPLETE)
        if not all(f"moments/{name}" in {key.partition("/c/")[0] for key in recorded} for name in EMBEDDING_MOMENTS):
            return None
        return EmbeddingMoments(count, *(self.contents.values(f"moments/{name}") for name in EMBEDDING_MOMENTS))

    @cached_property
    def _computed_embedding_moments(self) -> EmbeddingMoments:
        return embedding_moments_of_rows(self.contents, self.contents.good_rows())

    def _selected_moments(self, images: Images) -> MergedMoments:
        rows = selection_of(self, images).rows
        if not len(rows):
            raise SettingsError(f"{self.path}: the list of images is empty; choose at least one that could be used")
        kept: tuple[np.ndarray, MergedMoments] | None = self.__dict__.get("_kept_moments")
        if kept is None or not np.array_equal(kept[0], rows):
            kept = self.__dict__["_kept_moments"] = rows, moments_of_rows(self.contents, rows)
        return kept[1]

    def _read(self, name: str, *index: int, dtype: DTypeLike | None = None) -> np.ndarray:
        values = self.contents.read(name, *index, dtype=dtype)
        return values if len(self._rows) == len(values) else values[self._rows]


def open_store(path: str | Path, include_failed: bool = False) -> Store:
    """Open a store; `include_failed` shows images that could not be used, and unfinished ones, as NaN rows.

    Raises StoreError if there is no store, it is damaged, or it has another format.
    """
    return Store(path, include_failed)


def _offered(dtype: DTypeLike) -> np.dtype[Any]:
    """Return `dtype`. Raises SettingsError if it is neither float16 nor float32."""
    with suppress(TypeError):
        if (found := np.dtype(dtype)) in (np.float16, np.float32):
            return found
    name = getattr(dtype, "__name__", dtype)
    raise SettingsError(f"dtype {name} is not supported; choose float32, or float16, in which coordinates are stored")


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
