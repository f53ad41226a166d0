"""The images of a store that pass a filter. What each part of a filter chooses is kept, eight images to a byte."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np
from jaxtyping import Bool, Int, UInt8

from headspan.errors import SettingsError
from headspan.web.asked import AskedStore
from headspan.web.planes import all_points
from headspan.web.samples.columns import rows_with_value
from headspan.web.samples.filters import Filter, inside, places_by_key, rows_with_keys
from headspan.web.samples.words import packed_words


def filtered_rows(asked: AskedStore, asking: Filter, by_key: bool = False) -> Int[np.ndarray, " image"]:
    """The rows of the images that pass, ascending, or in the order of their keys. Raises SettingsError and Missing."""
    if asking.empty and not by_key:
        return asked.store.rows
    return asked.keep(
        ("rows", asking, by_key), lambda: _rows(asked, asking, by_key), lambda rows: int(rows.nbytes) + len(asking.keys)
    )


def words_of(asked: AskedStore, words: tuple[str, ...]) -> UInt8[np.ndarray, "word byte"]:
    """For each word the images whose captions have it. Raises SettingsError if no image has a caption."""
    return asked.keep(("words", words), lambda: packed_words(asked.store, words), lambda masks: int(masks.nbytes))


def _rows(asked: AskedStore, asking: Filter, by_key: bool) -> Int[np.ndarray, " image"]:
    store, passed = asked.store, np.ones(asked.store.images, bool)
    if asking.words:
        masks = np.unpackbits(words_of(asked, asking.words), axis=1, count=store.images).view(bool)
        passed &= masks.any(axis=0) if asking.any_word else masks.all(axis=0)
    if asking.classes:
        passed &= _in_classes(asked, asking.classes)
    if asking.keys:
        passed &= rows_with_keys(store, asking.keys)[store.rows]
    if asking.column is not None and asking.value is not None:
        column, value = asking.column, asking.value
        passed &= _kept(asked, ("value", column, value), lambda: rows_with_value(store, column, value)[store.rows])
    if asking.plane is not None:
        passed &= inside(all_points(asked, asked.head_or_embedding(asking.plane)), asking.polygon)
    # Kept in as few bytes as they need.
    rows = store.rows[np.flatnonzero(passed)].astype(np.min_scalar_type(store.planned_images))
    if by_key:
        places = asked.keep("by key", lambda: places_by_key(store), lambda places: int(places.nbytes))
        rows = rows[np.argsort(places[rows], kind="stable")]
    return rows


def _in_classes(asked: AskedStore, numbers: tuple[int, ...]) -> Bool[np.ndarray, " image"]:
    classes = asked.classes()
    if not len(classes.numbers):
        raise SettingsError(f"{asked.name}: no image has a class, so classes cannot choose images; filter by words")
    # The last place serves images without a class.
    chosen = np.append(np.isin(classes.numbers, numbers), False)
    return chosen[classes.places]


def _kept(asked: AskedStore, key: Hashable, make: Callable[[], Bool[np.ndarray, " image"]]) -> np.ndarray:
    """A mask of the images shown, which is kept in packed form."""
    packed = asked.keep(key, lambda: np.packbits(make()), lambda bits: int(bits.nbytes))
    return np.unpackbits(packed, count=asked.store.images).view(bool)
