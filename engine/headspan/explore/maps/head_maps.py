"""Show where one head finds evidence for a text in some images, beside what it shows in images drawn at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.explore.maps.centred_maps import baseline, full_colour, layer_maps, sampled
from headspan.explore.maps.segmentation import PatchOutputs, patch_outputs
from headspan.explore.nearest.similarities import refuse_other_vectors
from headspan.explore.query.query_image import Images, name_of, usable
from headspan.head_names import head_name
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True, repr=False)
class HeadMaps:
    """Maps of one text through one head over some images, centred on the head's mean map."""

    layer: int
    head: int
    # None if the query was a vector.
    text: str | None
    # Indices of stored images, None for others; and their keys, or the names of their files.
    images: tuple[int | None, ...]
    keys: tuple[str, ...]
    # In standard deviations of a patch's contribution over the images and patches of a sample.
    deviations: Float32[np.ndarray, "image rows columns"]
    # One standard deviation, as a patch's contribution to the dot product.
    deviation: float
    # The number of standard deviations that 95 % of the sample's patches stay within.
    threshold: float
    # How many images drawn at random gave the mean map, the deviation and the threshold.
    sample: int

    def __repr__(self) -> str:
        rows, columns = self.deviations.shape[1:]
        return f"HeadMaps({self._title()}: {counted(len(self.images), 'image')}, {rows} × {columns} patches)"

    @property
    def coloured(self) -> Float32[np.ndarray, " image"]:
        """The share of each image's patches beyond the threshold; 0.05 on average for images drawn at random."""
        return (np.abs(self.deviations) > self.threshold).mean(axis=(1, 2), dtype=np.float32)

    def plot(
        self,
        pictures: Sequence[np.ndarray] | None = None,
        *,
        ax: Axes | Sequence[Axes] | None = None,
        colorbar: bool = True,
    ) -> list[Axes]:
        """Draw the maps as the report does, over `pictures` in grey, and return the axes of the maps.

        Orange is for the text and blue against it; patches within the threshold have no colour. All maps have one
        scale. `pictures` are uint8 [height, width, 3], as `hs.read_pictures(store, maps.images)` returns them. Without
        `ax`, which is one of matplotlib's axes for each image, a new pyplot figure also has the pictures in colour.
        Needs matplotlib. Raises SettingsError if there are not as many pictures or axes as images.
        """
        from headspan.plots.maps import draw_maps

        full = full_colour(list(self.deviations), self.threshold)
        return draw_maps(
            self.deviations,
            self.threshold,
            full,
            names=self.keys,
            title=self._title(),
            pictures=pictures,
            ax=ax,
            colorbar=colorbar,
        )

    def _title(self) -> str:
        return head_name(self.layer, self.head) + ("" if self.text is None else f": “{self.text}”")


def head_maps(
    store: Store,
    text: str | Float[np.ndarray, " joint"],
    head: Head,
    images: Images,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> HeadMaps:
    """Maps of a text, or of a unit vector, through `head`, a pair (layer, head), over images as in `query_image`.

    Each map shows how much each patch's contribution along the text differs from the head's mean map, in standard
    deviations; both are taken over at most 128 stored images drawn at random with a fixed seed. If the store has no
    patches, these images pass through the model once; `weights` and `shards` are as in `query_image`.

    Raises SettingsError if the store has fewer than two images, if the head or an image is not in it, if there are no
    images, if the vector does not have the joint dimension, or if the head's maps do not vary; and the errors of
    `text_vectors` and of `query_image`.
    """
    layer, number = head
    store.contents.layer_index(layer, number)
    sample = sampled(store)
    if len(sample) < 2:
        raise SettingsError(f"{store.path}: maps need two images to be compared with, and the store has fewer")
    shown = usable(store, images, shards)
    vector = text_vectors(store, [text], on_progress, weights=weights)[0] if isinstance(text, str) else text
    refuse_other_vectors(store, np.asarray(vector)[None])
    along = (store.head_directions(layer, number) @ vector)[None]
    patches = partial(patch_outputs, store, on_progress=on_progress, weights=weights, shards=shards)

    def of_sample() -> Iterator[PatchOutputs]:
        for done, image in enumerate(sample, start=1):
            yield patches(image)
            on_progress(Progress("maps", done, len(sample)))

    base = baseline(store, layer, [number], along, of_sample())
    if np.isnan(base.deviation[0]):
        raise SettingsError(f"{store.path}: the maps of {head_name(layer, number)} do not vary; choose another head")
    deviations = [base.deviations(layer_maps(store, patches(image), layer, [number], along))[0] for image in shown]
    numbers, names = zip(*(name_of(store, image) for image in shown), strict=True)
    return HeadMaps(
        layer,
        number,
        text if isinstance(text, str) else None,
        numbers,
        names,
        np.stack(deviations),
        float(base.deviation[0]),
        float(base.threshold[0]),
        base.images,
    )
