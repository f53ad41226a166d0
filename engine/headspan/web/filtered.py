"""The images of a store that pass a filter. What each part of a filter chooses is kept where it is slow to find."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import reduce

import numpy as np
from jaxtyping import Bool, Int, UInt8

from headspan.errors import SettingsError
from headspan.store.reader import Store
from headspan.web.asked import AskedStore
from headspan.web.regions import inside_region
from headspan.web.samples.columns import rows_with_value
from headspan.web.samples.filters import Filter, places_by_key, rows_with_keys
from headspan.web.samples.word_index import word_index
from headspan.web.samples.words import packed_words


def filtered_rows(asked: AskedStore, asking: Filter, by_key: bool = False) -> Int[np.ndarray, " image"]:
    """The rows of the images that pass, ascending, or in the order of their keys. Raises SettingsError and Missing."""
    if asking.empty and not by_key:
        return asked.store.rows
    return asked.keep(
        ("rows", asking, by_key),
        lambda: _rows(asked, asking, by_key),
        # Views of an index take nothing, nor do the rows of all images.
        lambda rows: (int(rows.nbytes) if rows.base is None and rows is not asked.store.rows else 0) + len(asking.keys),
    )


def words_of(asked: AskedStore, words: tuple[str, ...]) -> UInt8[np.ndarray, "word byte"]:
    """For each word the images whose captions have it. Raises SettingsError if no image has a caption."""
    return asked.keep(("words", words), lambda: packed_words(asked.store, words), lambda masks: int(masks.nbytes))


def _rows(asked: AskedStore, asking: Filter, by_key: bool) -> Int[np.ndarray, " image"]:
    store = asked.store
    # The images of some parts of a filter, ascending, and of others as masks of all images.
    parts: list[Int[np.ndarray, " some"]] = []
    masks: list[Bool[np.ndarray, " image"]] = []
    if asking.words:
        parts.append(_with_words(asked, asking.words, asking.any_word))
    if asking.classes:
        parts.append(_in_classes(asked, asking.classes))
    if asking.keys:
        masks.append(rows_with_keys(store, asking.keys)[store.rows])
    if asking.column is not None and asking.value is not None:
        column, value = asking.column, asking.value
        masks.append(_kept(asked, ("value", column, value), lambda: rows_with_value(store, column, value)[store.rows]))
    if asking.plane is not None:
        masks.append(inside_region(asked, asked.head_or_embedding(asking.plane), asking.polygon))
    masks = [mask for mask in masks if not mask.all()]
    if parts:
        images = reduce(_in_both, parts)
        for mask in masks:
            images = images[mask[images]]
    elif masks:
        images = np.flatnonzero(reduce(np.logical_and, masks))
    if not parts and not masks:
        rows = store.rows
    else:
        rows = images if store.images == store.planned_images else store.rows[images]
    if by_key:
        places = asked.keep("by key", lambda: places_by_key(store), lambda places: int(places.nbytes))
        rows = rows[np.argsort(places[rows], kind="stable")]
    # Kept in as few bytes as they need.
    return rows if rows is store.rows or rows.itemsize <= 4 else rows.astype(np.min_scalar_type(store.planned_images))


def _with_words(asked: AskedStore, words: tuple[str, ...], any_word: bool) -> Int[np.ndarray, " some"]:
    """The images whose captions have all of the words, or one of them."""
    index = word_index(asked.store)
    found = None if index is None else [index.rows_of(word) for word in words]
    if found is None or any(rows is None for rows in found):
        masks = np.unpackbits(words_of(asked, words), axis=1, count=asked.store.images).view(bool)
        return np.flatnonzero(masks.any(axis=0) if any_word else masks.all(axis=0))
    images = [_shown(asked.store, rows) for rows in found if rows is not None]
    return reduce(np.union1d if any_word else _in_both, images)


def _in_both(some: Int[np.ndarray, " some"], others: Int[np.ndarray, " other"]) -> Int[np.ndarray, " both"]:
    """The images that are in two ascending lists."""
    found: Int[np.ndarray, " both"] = np.intersect1d(some, others, assume_unique=True)
    return found


def _shown(store: Store, rows: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
    """The indices of those rows, ascending, that the store shows."""
    images = store.images_of_rows(rows)
    return images if store.images == store.planned_images else images[images >= 0]


def _in_classes(asked: AskedStore, numbers: tuple[int, ...]) -> Int[np.ndarray, " some"]:
    """The images of some classes."""
    classes = asked.classes()
    if not len(classes.numbers):
        raise SettingsError(f"{asked.name}: no image has a class, so classes cannot choose images; filter by words")
    chosen = [classes.images(int(place)) for place in np.flatnonzero(np.isin(classes.numbers, numbers))]
    return chosen[0] if len(chosen) == 1 else np.sort(np.concatenate([np.zeros(0, np.uint32), *chosen]))


def _kept(asked: AskedStore, key: Hashable, make: Callable[[], Bool[np.ndarray, " image"]]) -> np.ndarray:
    """A mask of the images shown, which is kept in packed form."""
    packed = asked.keep(key, lambda: np.packbits(make()), lambda bits: int(bits.nbytes))
    return np.unpackbits(packed, count=asked.store.images).view(bool)
