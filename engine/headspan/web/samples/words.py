"""Words of captions: which images have them, and which words are frequent."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from headspan.store.reader import Store
from headspan.store.select import rows_with_words
from headspan.web.samples.columns import sampled
from headspan.web.samples.database import samples_of
from headspan.web.samples.word_index import word_index

# Captions that say which words are frequent, and how many words are offered.
_SAMPLED, _WORDS = 50_000, 120
# A word in more of the captions tells few images from the others.
_MOST_SHARE = 0.5
# Words that tell nothing about an image, however rare they are in short captions.
_FUNCTION_WORDS = frozenset(
    {"a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "has", "have", "her", "his", "in", "into", "is"}
    | {"it", "its", "of", "on", "or", "that", "the", "their", "there", "this", "to", "was", "were", "while", "with"}
)
_FREQUENT = r"""
    SELECT word, count(*) AS images FROM (
        SELECT unnest(list_distinct(regexp_extract_all(lower(caption), '[\p{L}\p{M}\p{N}_]+'))) AS word FROM part
    ) WHERE length(word) > 1 GROUP BY word ORDER BY images DESC, word LIMIT 400
"""


def packed_words(store: Store, words: tuple[str, ...]) -> UInt8[np.ndarray, "word byte"]:
    """For each word the images shown whose captions have it, as `Store.select` matches words; eight images a byte."""
    index = word_index(store)
    found = None if index is None else index.rows_with(words)
    masks = rows_with_words(store, words) if found is None else found
    # An index of all rows would copy the masks slowly.
    return np.packbits(masks if store.images == store.planned_images else masks[:, store.rows], axis=1)


def frequent_words(store: Store) -> tuple[dict[str, int], int]:
    """Frequent words that tell images apart, with the number of captions that have each, and how many were looked at.

    Words of more than half of the captions are left out, as are words without a meaning of their own.
    """
    table = sampled(store, ["caption"], _SAMPLED)
    captions = len(table) - table["caption"].null_count
    if not captions:
        return {}, 0
    found = samples_of(store).of_table(_FREQUENT, table)
    kept = {
        word: int(count)
        for word, count in found
        if count <= _MOST_SHARE * captions and word not in _FUNCTION_WORDS and not word.isdecimal()
    }
    return dict(list(kept.items())[:_WORDS]), captions
