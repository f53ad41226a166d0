"""One image as a query: its numbers, read from the store, or computed by the store's model from a file or pixels.

An image that is not in the store is decoded as the store's images were, and passes once through the store's tower. So
its numbers agree with those that the store would hold of it, within the store's 16-bit rounding. Only this needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64
from PIL import Image as Pil

from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.explore.query.computed_image import computed, patches_again, refuse_unreadable
from headspan.explore.query.image_source import image_source
from headspan.originals.seen_part import stored_preprocess
from headspan.store.reader import Store
from headspan.store.schema import decoding

# The index of an image in the store, a file, or pixels: a PIL image, or uint8 `[height, width, 3]`.
Image = int | str | Path | Pil.Image | np.ndarray


@dataclass(frozen=True, slots=True, repr=False)
class QueryImage:
    """One image's numbers: read from a store, or computed by the store's model from a file or pixels.

    They are as the store holds them: `heads` are head outputs `Σ_n α v` in the heads' own coordinates, `patches` the
    `α v` of each source token, and `norm` holds the final norm's mean `μ`, its `s`, and `‖embedding‖`.
    """

    # The key of a stored image, or the file's name.
    name: str
    # The index in the store; None for an image that is not in it.
    image: int | None
    norm: Float32[np.ndarray, " 3"]
    # Not normalised.
    embedding: Float32[np.ndarray, " joint"]
    # Layers in the order of `store.layers`.
    heads: Float32[np.ndarray, "layer head head_dim"]
    # None unless they were asked for.
    patches: Float[np.ndarray, "layer token head head_dim"] | None

    def __repr__(self) -> str:
        where = "not in the store" if self.image is None else f"image {self.image}"
        return f"QueryImage({self.name!r}: {where}{'' if self.patches is None else ', with patches'})"


# One image or several; an array of one axis holds indices.
Images = Image | QueryImage | Sequence[Image | QueryImage]


def query_image(
    store: Store,
    image: Image | QueryImage,
    on_progress: Listener = ignore,
    *,
    with_patches: bool = False,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> QueryImage:
    """The numbers of one image for queries of `store`: the image of an index, or a file, a PIL image or uint8 pixels.

    A stored image is read from the store. Patches that the store lacks, and images that are not in it, are computed by
    the store's model, which stays loaded; on a CPU in float32, on a GPU in the store's precision. `weights` is as in
    `text_vectors`; `shards` say where all of the store's shards are now, if they have moved. A QueryImage is returned
    as it is, or with patches.

    Raises SettingsError if the index is not in the store, SourceError if the image cannot be read or decoded, and
    ModelError if the model cannot be loaded or is not the one that made the store.
    """
    if isinstance(image, QueryImage):
        if image.patches is not None or not with_patches:
            return image
        if image.image is None:
            raise SettingsError(f"{image.name}: has no patches; ask for them with query_image(…, with_patches=True)")
        image = image.image
    if isinstance(image, str | Path | Pil.Image | np.ndarray):
        source = image_source(image)
        found = computed(store, source, with_patches, on_progress, weights)
        return QueryImage(source.name, None, found["norm"], found["embedding"], found["heads"], found.get("patches"))
    try:
        number = index(image)
    except TypeError as error:
        raise SettingsError(
            f"image {image!r}: give an index of the store, a file, a PIL image or uint8 pixels"
        ) from error
    row = store.row_of(number)
    number = range(store.images)[number]
    contents = store.contents
    (name,) = (sample["key"] for sample in store.few_samples([number], ["key"]))
    norm = contents.row("norm", row)
    refuse_failed(store, number, norm)
    patches = None
    if with_patches and "patches" in contents.specs:
        patches = store.patch_coordinates(number, dtype=np.float16)
    elif with_patches:
        patches = patches_again(store, number, name, on_progress, weights, shards)
    return QueryImage(
        name, number, norm, contents.row("embedding", row), contents.row("heads", row, dtype=np.float32), patches
    )


def usable(store: Store, images: Images, shards: Sequence[str] = ()) -> list[Image | QueryImage]:
    """Images whose patches are to be asked for, as a list, each of which is looked at before a model is loaded.

    Raises what `query_image` raises for an image that cannot be read or decoded, or has no numbers.
    """
    found = listed(store, images)
    for image in found:
        if isinstance(image, QueryImage):
            continue
        if isinstance(image, str | Path | Pil.Image | np.ndarray):
            image_source(image).decoded(stored_preprocess(store.attributes["preprocess"]), decoding(store.attributes))
            continue
        refuse_failed(store, image, store.contents.row("norm", store.row_of(image)))
        if "patches" not in store.contents.specs:
            number, name = name_of(store, image)
            assert number is not None
            refuse_unreadable(store, number, name, shards)
    return found


def unit_embedding(query: QueryImage) -> Float64[np.ndarray, " joint"]:
    """An image's embedding divided by its length."""
    embedding = query.embedding.astype(np.float64)
    found: Float64[np.ndarray, " joint"] = embedding / np.linalg.norm(embedding)
    return found


def own_coordinates(store: Store, query: QueryImage, layer: int, head: int) -> Float64[np.ndarray, " coordinate"]:
    """What `store.head_directions` maps to the image's contribution through a head, divided by `‖embedding‖`.

    Raises SettingsError if the head is not stored.
    """
    own = query.heads[store.contents.layer_index(layer, head), head].astype(np.float64)
    return head_coordinates(own, query.norm.astype(np.float64), normalised=True)


def all_coordinates(store: Store, query: QueryImage) -> Float64[np.ndarray, "head coordinate"]:
    """The `own_coordinates` of every stored head, in the order of `stored_heads`."""
    own = query.heads.astype(np.float64).reshape(-1, query.heads.shape[-1])
    return head_coordinates(own, np.broadcast_to(query.norm.astype(np.float64), (len(own), 3)), normalised=True)


def refuse_failed(store: Store, image: int, norm: Float32[np.ndarray, " 3"]) -> None:
    """Raise SettingsError if the store has no numbers of an image, since it could not be used."""
    if not np.isfinite(norm).all():
        (name,) = store.samples([image], ["key"])["key"].to_pylist()
        raise SettingsError(
            f"{store.path}: image {image} ({name}) could not be used by precompute, or is not computed yet; choose "
            "another one"
        )


def listed(store: Store, images: Images) -> list[Image | QueryImage]:
    """One image, or several, as a list; an array of one axis holds indices. Raises SettingsError for an empty list."""
    if isinstance(images, int | str | Path | Pil.Image | QueryImage):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim != 1:
        return [images]
    found = [int(image) if isinstance(image, np.integer) else image for image in images]
    if not found:
        raise SettingsError(f"{store.path}: the list of images is empty; name at least one")
    return found


def name_of(store: Store, image: Image | QueryImage) -> tuple[int | None, str]:
    """The index of an image in the store, if it is there, and its name, as a QueryImage has them."""
    if isinstance(image, QueryImage):
        return image.image, image.name
    if isinstance(image, str | Path):
        return None, Path(image).name
    if isinstance(image, Pil.Image | np.ndarray):
        return None, image_source(image).name
    store.row_of(image)
    (name,) = store.samples([image], ["key"])["key"].to_pylist()
    return range(store.images)[image], name
