"""Maps of texts over images, through chosen heads, and maps of one text against another.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024 (maps), and Madasu et al., arXiv 2409.06579 (CLIP-InterpreT: one head,
and contrasts). Maps are raw: a patch's contribution to the dot product of the text and the heads' summed contribution,
which is divided by `‖embedding‖`. Nothing is centred, clipped or stretched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError
from headspan.events import Listener, Progress, ignore
from headspan.explore.maps.map_result import TextMaps
from headspan.explore.maps.segmentation import maps_along, patch_outputs
from headspan.explore.nearest.similarities import distinct, refuse_other_vectors
from headspan.explore.query.query_image import Image, Images, QueryImage, name_of, usable
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors

# A text, or a unit vector in joint space.
Text = str | np.ndarray


def segment(
    store: Store,
    images: Images,
    texts: Text | Sequence[Text],
    heads: Sequence[Head] | None = None,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> TextMaps:
    """Maps of texts, or unit vectors, over images: how much each patch contributes along the text through `heads`.

    `images` is one image as `query_image` takes it, or a list of them; `heads` are pairs (layer, head), by default all
    stored ones. `weights` and `shards` are as in `query_image`.

    A store with patches answers for its images without the model. Other images, and images of stores without patches,
    pass through the model once; the result is kept in the user's cache folder.

    Raises SettingsError if a head or an image is not in the store, or a vector does not have the joint dimension; and
    the errors of `text_vectors` and of `query_image`.
    """
    chosen = _several(texts)
    shown, through = usable(store, images, shards), _through(store, heads)
    vectors = _vectors(store, chosen, on_progress, weights)
    return _maps(store, shown, vectors, _names(chosen), None, through, on_progress, weights, shards)


def contrast(
    store: Store,
    images: Images,
    text: Text,
    against: Text,
    heads: Sequence[Head] | None = None,
    on_progress: Listener = ignore,
    *,
    centred: bool = False,
    weights: str | Path | None = None,
    shards: Sequence[str] = (),
) -> TextMaps:
    """Maps of one text minus maps of another: positive where the patch speaks for `text` more than for `against`.

    `contrast(store, images, b, a)` is exactly the negative of `contrast(store, images, a, b)`. With `centred`, each map
    is minus its mean over the image's patches: it is positive where a patch speaks for `text` more than the image as a
    whole does, which tells two objects apart, but says nothing of how much either is there. Other arguments, and
    errors, are those of `segment`.
    """
    names = _names([text, against])
    shown, through = usable(store, images, shards), _through(store, heads)
    vectors = _vectors(store, [text, against], on_progress, weights)
    # Both directions compute the same difference, and one of them negates it.
    swapped = vectors[1].tobytes() < vectors[0].tobytes()
    found = _maps(
        store, shown, vectors[::-1] if swapped else vectors, names[:1], names[1:], through, on_progress, weights, shards
    )
    difference = found.maps[:, :1] - found.maps[:, 1:]
    if centred:
        difference -= difference.mean(axis=(2, 3), keepdims=True)
    # A difference of nothing is 0, never −0.
    return replace(found, maps=(-difference if swapped else difference) + np.float32(0), centred=centred)


def _maps(
    store: Store,
    shown: Sequence[Image | QueryImage],
    vectors: Float[np.ndarray, "text joint"],
    texts: tuple[str | None, ...],
    against: tuple[str | None, ...] | None,
    heads: Sequence[Head],
    on_progress: Listener,
    weights: str | Path | None,
    shards: Sequence[str],
) -> TextMaps:
    maps: list[Float32[np.ndarray, "text rows columns"]] = []
    for done, image in enumerate(shown, start=1):
        patches = patch_outputs(store, image, on_progress, weights=weights, shards=shards)
        maps.append(maps_along(store, patches, vectors, heads))
        on_progress(Progress("maps", done, len(shown)))
    numbers, names = zip(*(name_of(store, image) for image in shown), strict=True)
    return TextMaps(numbers, names, texts, against, tuple(heads), len(stored_heads(store)), np.stack(maps))


def _through(store: Store, heads: Sequence[Head] | None) -> Sequence[Head]:
    """The heads without repetition, by default all stored ones. Raises SettingsError for one that is not stored."""
    found = stored_heads(store) if heads is None else distinct(store, heads)
    for layer, head in found:
        store.contents.layer_index(layer, head)
    return found


def _several(texts: Text | Sequence[Text]) -> list[Text]:
    if isinstance(texts, str) or (isinstance(texts, np.ndarray) and texts.ndim == 1):
        return [texts]
    found = list(texts)
    if not found:
        raise SettingsError("the list of texts is empty; give at least one")
    return found


def _names(texts: Sequence[Text]) -> tuple[str | None, ...]:
    return tuple(text if isinstance(text, str) else None for text in texts)


def _vectors(
    store: Store, texts: Sequence[Text], on_progress: Listener, weights: str | Path | None
) -> Float[np.ndarray, "text joint"]:
    """The vectors of texts, in their order; vectors are taken as they are."""
    # Sorted, since a text's last bits may depend on the texts that pass the model with it.
    words = sorted({text for text in texts if isinstance(text, str)})
    known = dict(zip(words, text_vectors(store, words, on_progress, weights=weights), strict=True)) if words else {}
    vectors = [known[text] if isinstance(text, str) else np.asarray(text) for text in texts]
    for vector in vectors:
        refuse_other_vectors(store, vector[None])
    return np.stack(vectors)
