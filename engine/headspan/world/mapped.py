"""Maps of every head over scenes, beside the masks of what a factor's text names.

A map of a text is a sum over heads, so one pass over an image's patches gives the maps through every set of heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from headspan.explore.maps.centred_maps import layer_maps
from headspan.explore.maps.segmentation import patch_outputs, resized
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.world.captions import value_of
from headspan.world.drawing import render
from headspan.world.factors import Scene, Thing

# Factors whose value each object has, also among different objects.
_OF_OBJECTS = ("colour", "shape", "texture", "size")
Mask = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, slots=True)
class EveryHead:
    """Maps of some vectors through every head of a store, image by image."""

    store: Store
    # Every vector in each head's coordinates.
    along: Float32[np.ndarray, "layer head coordinate vector"]

    @classmethod
    def of(cls, store: Store, vectors: Float32[np.ndarray, "vector joint"]) -> EveryHead:
        """The vectors, projected to every head's coordinates."""
        heads = range(store.heads_per_layer)
        along = [[store.head_directions(layer, head) @ vectors.T for head in heads] for layer in store.layers]
        return cls(store, np.array(along, np.float32))

    def maps(self, image: int, vector: Sequence[float] | np.ndarray) -> Float32[np.ndarray, "layer head rows columns"]:
        """Maps of one combination of the vectors over one image: `vector` holds the weight of each."""
        heads, weights = range(self.store.heads_per_layer), np.asarray(vector, np.float32)
        patches = patch_outputs(self.store, image)
        return np.stack(
            [
                layer_maps(self.store, patches, layer, heads, self.along[at] @ weights)
                for at, layer in enumerate(self.store.layers)
            ]
        )

    def through(
        self, maps: Float32[np.ndarray, "layer head rows columns"], heads: Sequence[Head], size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """The map through `heads`, which is the sum of theirs, enlarged to `size`."""
        layers = list(self.store.layers)
        chosen = [layers.index(layer) for layer, _ in heads], [head for _, head in heads]
        return resized(maps[chosen].sum(axis=0), size)


def masks_of(scenes: Sequence[Scene], images: Sequence[int]) -> Mapping[int, UInt8[np.ndarray, "side side"]]:
    """Which object each pixel of an image shows, counted from 1; 0 is the background."""
    images = sorted(set(images))
    return dict(zip(images, render([scenes[image] for image in images], masks=True)[1], strict=True))


def value_with_a_place(scene: Scene, factor: str) -> str | None:
    """The value of a factor that `region` shows, or None if no place of the scene has one.

    Of different objects, it is that of the main object. A style has no place, and of the background only the colour
    counts, since texts about backgrounds are scored by it.
    """
    if factor in _OF_OBJECTS:
        return value_of_thing(scene.things[0], factor)
    return value_of(scene, factor) if factor in ("count", "position", "background_colour") else None


def value_of_thing(thing: Thing, factor: str) -> str:
    """An object's value of colour, shape, texture, size or position."""
    return str(getattr(thing, factor))


def region(scene: Scene, factor: str, mask: UInt8[np.ndarray, "height width"]) -> Mask:
    """The pixels that show the scene's `value_with_a_place`: all objects that have it, or the background."""
    if factor == "background_colour":
        return mask == 0
    if factor not in _OF_OBJECTS:
        return mask > 0
    value = value_of_thing(scene.things[0], factor)
    having = [number for number, thing in enumerate(scene.things, 1) if value_of_thing(thing, factor) == value]
    return np.isin(mask, having)


def shares_of_patches(mask: Mask, grid: tuple[int, int]) -> Float32[np.ndarray, "rows columns"]:
    """The share of each patch of a `grid` (rows, columns) that the mask covers."""
    rows, columns = grid
    height, width = mask.shape
    return mask.reshape(rows, height // rows, columns, width // columns).mean(axis=(1, 3), dtype=np.float32)
