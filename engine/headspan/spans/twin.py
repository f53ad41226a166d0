"""The second null of text spans: a twin, which is a store of the same images from the same architecture, untrained.

The heads of random weights explain a little more than rotated pools on some images and models, since images and texts
pass through one architecture. So a trained model's excess stands beside its twin's. The twin's text vectors come from
its own text tower, which is random too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float

from headspan.errors import StoreError, counted
from headspan.shards.samples import Shard
from headspan.spans.nulls import HeadsAbove, range_of
from headspan.store.identity import SIZE_KEYS, differences
from headspan.store.info import command_of
from headspan.store.reader import Store

# What a twin has in common with its store, besides the images.
_SHARED = ("tower", "preprocess", "layers", *SIZE_KEYS)


@dataclass(frozen=True, slots=True)
class BesideTwin:
    """The heads of a run beside those of its twin, at `texts` texts. Excess is above the mean of the draws."""

    texts: int
    # Heads above chance, here and in the twin.
    own: HeadsAbove
    twin: HeadsAbove
    # Mean excess over heads, here and in the twin.
    excess: float
    twin_excess: float
    # The 95 % range of the excess over the twin's heads; all of them if they are fewer than 39.
    low: float
    high: float
    # How many heads' excess is above that range.
    above: int


def beside_twin(
    own: HeadsAbove,
    twin: HeadsAbove,
    excess: Float[np.ndarray, "layer head"],
    twin_excess: Float[np.ndarray, "layer head"],
) -> BesideTwin:
    """Compare heads by their excess over chance, here and in the twin."""
    low, high = range_of(twin_excess.ravel())
    above = int((excess > high).sum())
    return BesideTwin(own.texts, own, twin, float(excess.mean()), float(twin_excess.mean()), low, high, above)


def twin_command(store: Store, out: str) -> str:
    """The command that makes a twin of `store`, and the folder in which it runs if that is known."""
    folder = store.attributes.get("made_with", {}).get("folder")
    command = command_of(store, {"pretrained": "random:0", "weights": None, "out": out})
    return f"`{command}`" + (f" in {folder}" if folder else "")


def refuse_other_than_twin(store: Store, twin: Store) -> None:
    """Raise StoreError unless `twin` has random weights and `store`'s architecture, layers and images."""
    if not str(twin.attributes["pretrained"]).startswith("random:"):
        raise StoreError(
            f"{twin.path}: has the weights {twin.attributes['pretrained'] or 'of its model'}, but a twin has random "
            f"ones; make it with {twin_command(store, 'random.zarr')}"
        )
    if twin.attributes["weights_sha256"] == store.attributes["weights_sha256"]:
        raise StoreError(
            f"{twin.path}: has the weights of {store.path}, but a twin has others; make it with another seed, such as "
            "--pretrained random:1"
        )
    for what, own, wanted in (
        *differences(twin.attributes, store.attributes, _SHARED),
        *_other_images(twin, store),
    ):
        raise StoreError(
            f"{twin.path}: was made with {what} {own}, but {store.path} with {wanted}; a twin has the same "
            f"architecture, layers and images, so make it with {twin_command(store, 'random.zarr')}"
        )


def _other_images(twin: Store, store: Store) -> Iterator[tuple[str, str, str]]:
    """How the images differ: what, and both values, in words."""
    if twin.moments().count != store.moments().count:
        yield "a number of images of", f"{twin.moments().count:,}", f"{store.moments().count:,}"
    own, wanted = twin.shards(), store.shards()
    if len(own) != len(wanted):
        yield "a number of planned shards of", f"{len(own):,}", f"{len(wanted):,}"
    for here, there in zip(own, wanted, strict=False):
        if _planned(here) != _planned(there):
            yield "the planned shard", _in_words(here), _in_words(there)


def _planned(shard: Shard) -> tuple[str, int, int | None]:
    """What tells shards apart wherever they are."""
    return PurePosixPath(shard.url).name, shard.images, shard.size_bytes


def _in_words(shard: Shard) -> str:
    name, images, size = _planned(shard)
    return f"{name} of {counted(images, 'image')}" + ("" if size is None else f" and {counted(size, 'byte')}")
