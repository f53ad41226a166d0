"""Which captions have a word, without reading them again: the rows of every distinct word of a store.

A word is a run of letters with their marks, digits and underscores, as `Store.select` matches words. Upper and lower
case are compared as the same regular expression compares them, but over the distinct words instead of all captions. So
answers equal those of a scan. The index of 1,000,000 captions of nine words takes about 40 MB; it is built in the
background, and a store with too many words has none.
"""

from __future__ import annotations

import re
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int32, Int64

from headspan.background import later
from headspan.store.reader import Store
from headspan.store.select import WORD_CHARACTERS, word_pattern
from headspan.store.tables import scan_samples

# Words of all captions together.
_MOST_WORDS = 64_000_000
_open: WeakKeyDictionary[Store, WordIndex | None] = WeakKeyDictionary()
# Of such words, `_small` tells which letters the regular expression takes for the same.
_ASCII_WORD = re.compile("[A-Za-z0-9_]+")


class WordIndex:
    """The rows of each distinct word of a store's captions."""

    def __init__(
        self, words: pa.Array, starts: Int64[np.ndarray, " word"], rows: Int32[np.ndarray, " place"], planned: int
    ) -> None:
        """`rows` are those of the words one after the other, each from its place in `starts`, of `planned` rows."""
        self._words, self._starts, self._rows, self._planned = words, starts, rows, planned
        self._by_letters: dict[str, list[int]] = {}
        for number, word in enumerate(words.to_pylist()):
            self._by_letters.setdefault(_small(word), []).append(number)

    @classmethod
    def of(cls, store: Store) -> WordIndex | None:
        """Read all captions once. None if they have too many words, or if there are none."""
        known: dict[str, int] = {}
        numbers: list[np.ndarray] = []
        counts: list[np.ndarray] = []
        total = 0
        for batch in scan_samples(store.contents.storage, store.contents.units, ["caption"]):
            parts = pc.split_pattern_regex(pc.fill_null(batch.column("caption"), ""), f"[^{WORD_CHARACTERS}]+")
            counts.append(pc.list_value_length(parts).to_numpy(zero_copy_only=False).astype(np.int32))
            encoded = pc.dictionary_encode(pc.list_flatten(parts))
            here = [known.setdefault(word, len(known)) for word in encoded.dictionary.to_pylist()]
            numbers.append(np.array(here, np.int32)[encoded.indices.to_numpy(zero_copy_only=False)])
            total += len(numbers[-1])
            if total > _MOST_WORDS:
                return None
        of_word = np.concatenate([np.zeros(0, np.int32), *numbers])
        rows = np.repeat(np.arange(store.planned_images, dtype=np.int32), np.concatenate(counts))
        order = np.argsort(of_word, kind="stable")
        of_word, rows = of_word[order], rows[order]
        # A caption that has a word twice counts once.
        first = np.ones(len(rows), bool)
        first[1:] = (of_word[1:] != of_word[:-1]) | (rows[1:] != rows[:-1])
        of_word, rows = of_word[first], rows[first]
        starts = np.searchsorted(of_word, np.arange(len(known) + 1))
        if not any(known):
            return None
        return cls(pa.array(list(known), pa.string()), starts, rows, store.planned_images)

    def rows_with(self, words: tuple[str, ...]) -> Bool[np.ndarray, "word row"] | None:
        """Whether the caption of each planned row has each of the words; None for what is not one word."""
        found = np.zeros((len(words), self._planned), bool)
        for mask, word in zip(found, words, strict=True):
            rows = self.rows_of(word)
            if rows is None:
                return None
            mask[rows] = True
        return found

    def rows_of(self, word: str) -> Int32[np.ndarray, " some"] | None:
        """The planned rows whose captions have a word, ascending; None for what is not one word."""
        if _ASCII_WORD.fullmatch(word):
            numbers = self._by_letters.get(_small(word), [])
        elif pc.match_substring_regex(pa.array([word]), f"^[{WORD_CHARACTERS}]+$")[0].as_py():
            same = pc.match_substring_regex(self._words, word_pattern(word)).to_numpy(zero_copy_only=False)
            numbers = np.flatnonzero(same).tolist()
        else:
            return None
        parts = [self._rows[self._starts[number] : self._starts[number + 1]] for number in numbers]
        return parts[0] if len(parts) == 1 else np.unique(np.concatenate([np.zeros(0, np.int32), *parts]))


def _small(word: str) -> str:
    """A word in small letters. Beside A to Z, two letters of other scripts are capital or small forms of ASCII's."""
    return word.lower().replace("\u017f", "s").replace("\u212a", "k")


def word_index(store: Store) -> WordIndex | None:
    """The index of a store; None if it has none, or none yet: the first call has it built in the background."""
    if store not in _open:
        _open[store] = None
        later(("words", id(store)), lambda: _build(store))
    return _open[store]


def _build(store: Store) -> None:
    _open[store] = WordIndex.of(store)
