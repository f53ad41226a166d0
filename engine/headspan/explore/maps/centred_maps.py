"""Maps of one text through one head, centred on the head's mean map and measured in standard deviations.

A map shows what each patch contributes to the dot product of the text and the head's contribution. Every head has a
mean map over images, which shows the positions that the head always reads, and not the image. So these maps show
differences from it. Their unit is the standard deviation of these differences over the images and patches of a sample.
The threshold is the number of standard deviations that 95 % of the sample's patches stay within. Plots do not colour
patches within it: in an image drawn at random, one patch in twenty has a colour by chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from headspan.decompose.formula import mean_and_bias_terms
from headspan.explore.maps.segmentation import PatchOutputs, on_grid, patch_outputs
from headspan.store.reader import Store

# The share of the sample's patches that have no colour.
WITHIN = 0.95
# A quantile, since single patches can be ten times larger than all others, which would then look pale.
FULL_COLOUR = 0.99
# Images that give the mean and the scale of the maps.
SAMPLE, SEED = 128, 0


@dataclass(frozen=True, slots=True)
class Baseline:
    """The mean map of each head of a layer over a sample of images, its standard deviation and its threshold."""

    mean: Float32[np.ndarray, "head rows columns"]
    # NaN for a head whose maps do not vary.
    deviation: Float32[np.ndarray, " head"]
    threshold: Float32[np.ndarray, " head"]
    images: int

    def deviations(self, maps: Float32[np.ndarray, "head rows columns"]) -> Float32[np.ndarray, "head rows columns"]:
        """The maps of one image as standard deviations from the mean map; NaN for a head whose maps do not vary."""
        return (maps - self.mean) / self.deviation[:, None, None]


def layer_maps(
    store: Store,
    image: int | PatchOutputs,
    layer: int,
    heads: Sequence[int],
    along: Float[np.ndarray, "head coordinate"],
) -> Float32[np.ndarray, "head rows columns"]:
    """Maps of one text for each of `heads`, over the patch grid of the image of that index or with those patches.

    `along` holds each text in its head's coordinates, `store.head_directions(layer, head) @ vector`. Contributions are
    divided by `‖embedding‖`, as in `explore.text_maps`.
    """
    patches = patch_outputs(store, image) if isinstance(image, int) else image
    own = patches.of_layer(layer)[store.prefix_tokens :, list(heads)]
    terms = mean_and_bias_terms(patches.norm, normalised=True)
    maps = np.einsum("phd,hd->hp", own, along[:, : store.head_dim]) * terms[0]
    maps += (along[:, store.head_dim :] @ terms)[:, None] / store.tokens
    return on_grid(store, maps.astype(np.float32))


def baseline(
    store: Store,
    layer: int,
    heads: Sequence[int],
    along: Float[np.ndarray, "head coordinate"],
    sample: Iterable[int | PatchOutputs],
) -> Baseline:
    """Mean, standard deviation and threshold of the maps of `heads` over the images of `sample`, at least two."""
    maps = np.stack([layer_maps(store, image, layer, heads, along) for image in sample])
    mean = maps.mean(axis=0)
    centred = maps - mean
    varies = np.abs(centred).max(axis=(0, 2, 3)) > np.finfo(np.float32).eps * np.abs(maps).max(axis=(0, 2, 3))
    # One degree of freedom of each patch is used by its mean.
    patches = centred[0, 0].size
    deviation = np.sqrt((centred**2).sum(axis=(0, 2, 3)) / ((len(maps) - 1) * patches))
    deviation = np.where(varies, deviation, np.nan).astype(np.float32)
    threshold = np.quantile(np.abs(centred) / deviation[:, None, None], WITHIN, axis=(0, 2, 3))
    return Baseline(mean, deviation, threshold.astype(np.float32), len(maps))


def full_colour(maps: Sequence[Float32[np.ndarray, "rows columns"]], threshold: float) -> float:
    """The number of standard deviations at which a head's maps reach full colour, at least twice the threshold."""
    return max(float(np.quantile(np.abs(np.stack(maps)), FULL_COLOUR)), 2 * threshold)


def sampled(store: Store) -> list[int]:
    """At most SAMPLE images with numbers, drawn at random with a fixed seed, in random order."""
    good = np.flatnonzero(np.isfinite(store.norm[:, 2]))
    return np.random.default_rng(SEED).permutation(good)[:SAMPLE].tolist()
