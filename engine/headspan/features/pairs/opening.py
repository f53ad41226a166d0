"""Open stores as pairs: check that they are of one space, and find or compute the vectors of captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headspan.errors import SettingsError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.features.pairs.caption_index import index_captions
from headspan.features.pairs.caption_vectors import caption_vectors
from headspan.features.pairs.image_vectors import patches_of, refuse_other_space, space_of
from headspan.features.pairs.pairs import LeftOut, Pairs, Source
from headspan.features.pairs.space import EMBEDDING, Space
from headspan.head_names import Head
from headspan.store.reader import Store, open_store
from headspan.store.selection import Images, chosen_images, usable_images


def open_pairs(
    stores: Store | str | Path | Sequence[Store | str | Path],
    space: str | Space = EMBEDDING,
    *,
    heads: Sequence[Head] | None = None,
    layers: Sequence[int] | None = None,
    captions: bool = True,
    images: Images | None = None,
    keep: str | Path | None = None,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> Pairs:
    """Open the pairs of one or more stores in one space.

    Captions are embedded once, and their vectors are kept; the stores are only read.

    Args:
        stores: A store or several, open or as paths. All must be of the same model.
        space: `embedding`, `heads` or `patches`; or the `Space` of a dictionary, whose heads and scale are then used.
        heads: The heads of the spaces `heads` and `patches`, as (layer, head).
        layers: All heads of these layers, instead of `heads`.
        captions: Whether texts are wanted. If so, images without captions are left out of the embedding's pairs.
        images: Some images, as in `Store.moments`; for a single store.
        keep: The folder that keeps the vectors of captions; by default the user's cache folder.
        weights: The place of the model's weights, as in `text_vectors`.
        on_progress: A listener, which is told what was left out, and how many captions are embedded.

    Raises:
        SettingsError: If the stores are of different spaces, have no captions, or lack the numbers of the space.
        StoreError: If a store is damaged, or the vectors of captions cannot be kept.
        ModelError: If captions must be embedded and the model cannot be loaded.
    """
    given = [stores] if isinstance(stores, (Store, str, Path)) else list(stores)
    if not given:
        raise SettingsError("no store was given; name at least one")
    opened = [each if isinstance(each, Store) else open_store(each) for each in given]
    if images is not None and len(opened) > 1:
        raise SettingsError(f"images choose from one store, but {len(opened)} were given; give one store")
    if isinstance(space, Space):
        found, like, others = space, "the dictionary", opened
    else:
        found, like, others = space_of(opened[0], space, heads, layers), str(opened[0].path), opened[1:]
    for store in others:
        refuse_other_space(found, store, like)
    wants_texts = captions and found.kind == EMBEDDING
    sources, unusable, without = [], 0, 0
    for store in opened:
        chosen = chosen_images(store, images)
        usable = chosen[usable_images(store, chosen)]
        unusable += (store.planned_images if images is None else len(chosen)) - len(usable)
        if not len(usable):
            raise SettingsError(f"{store.path}: no image could be used; choose a store with images")
        index = vectors = None
        if wants_texts:
            index = index_captions(store)
            captioned = index.counts(store.rows[usable]) > 0
            if not captioned.any():
                raise SettingsError(
                    f"{store.path}: none of its {counted(len(usable), 'image')} has a caption, which pairs need; write "
                    ".txt or .json members beside the images and precompute again, or learn from images alone"
                )
            without += int((~captioned).sum())
            usable = usable[captioned]
            vectors = caption_vectors(store, index, keep, on_progress, weights=weights)
        sources.append(Source(store, usable, index, vectors, patches_of(store, found)))
    left_out = LeftOut(unusable, without)
    if str(left_out):
        on_progress(Progress(NOTE, 1, 1, f"left out: {left_out}"))
    return Pairs(found, left_out, tuple(sources))
