"""Which heads carry a spurious cue rather than what a class means, from words for both and stored moments.

A head's score is the variance of its contribution along the spurious words minus that along the core words: the mean
over words of `t·Σ_h·t`, with `t` the unit vector of a word and `Σ_h` the covariance of the head's contributions. It
takes no class of an image and no group. The heads that Gandelsman, Efros, Steinhardt, ICLR 2024, ablate on Waterbirds
were chosen by hand, from their text spans; PUBLISHED_HEADS has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.store.head_space import Head, stored_heads
from headspan.store.moments_file import variances_along
from headspan.store.reader import Store
from headspan.store.selection import Images
from headspan.texts.pool import Pool
from headspan.texts.vectors import text_vectors

# By the model's name: heads about places, then heads about the setting of a photograph.
PUBLISHED_HEADS: Mapping[str, tuple[Head, ...]] = {
    "ViT-B-16": ((9, 6), (9, 8), (10, 10), (10, 11), (11, 0), (11, 3), (11, 6)),
    "ViT-L-14": (
        *((21, 1), (21, 3), (21, 6), (21, 8), (21, 11), (21, 13), (21, 14)),
        *((22, 2), (22, 12), (22, 13), (22, 15), (23, 1), (23, 3), (23, 5), (23, 6)),
    ),
    "ViT-H-14": ((29, 4), (29, 8), (29, 14), (30, 6), (30, 11), (30, 12), (30, 15), (31, 8), (31, 12)),
}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SpuriousHeads(Tabular):
    """Every stored head's variance along spurious and along core words, the most spurious head first."""

    spurious_words: tuple[str, ...]
    core_words: tuple[str, ...]
    heads: tuple[Head, ...]
    # The mean over words of the variance of the dot product of the word's vector with the head's contribution.
    spurious: Float64[np.ndarray, " head"]
    core: Float64[np.ndarray, " head"]

    def __repr__(self) -> str:
        return f"SpuriousHeads({counted(len(self.heads), 'head')}, {', '.join(self.spurious_words)})"

    @property
    def score(self) -> Float64[np.ndarray, " head"]:
        """Variance along the spurious words minus variance along the core words."""
        return self.spurious - self.core

    def candidates(self, most: int) -> tuple[Head, ...]:
        """The first heads, at most `most`, whose variance is larger along the spurious words."""
        return self.heads[: min(most, int((self.score > 0).sum()))]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads],
            "spurious": self.spurious.tolist(),
            "core": self.core.tolist(),
            "score": self.score.tolist(),
        }


def spurious_heads(
    store: Store,
    spurious: Sequence[str],
    core: Sequence[str],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    images: Images | None = None,
) -> SpuriousHeads:
    """Rank the stored heads by their variance along `spurious` words minus that along `core` words.

    Words are texts, embedded as they are; `weights` is as in `text_vectors`. `images` are those over which variances
    are taken, by default all, and then nothing but moments is read. Raises SettingsError if there are no words of one
    kind, and the errors of `text_vectors` and `Store.moments`.
    """
    for name, words in (("spurious", spurious), ("core", core)):
        if isinstance(words, str) or not [word for word in words if word.strip()]:
            raise SettingsError(f"there are no {name} words; give a list of at least one, such as land or water")
    texts = list(dict.fromkeys([*spurious, *core]))
    vectors = dict(
        zip(texts, text_vectors(store, Pool("words", tuple(texts)), on_progress, weights=weights), strict=True)
    )
    moments = store.moments(images)
    heads = stored_heads(store)
    found = np.empty((2, len(heads)))
    for place, (layer, head) in enumerate(heads):
        at = store.contents.layer_index(layer), head
        directions = store.head_directions(layer, head).astype(np.float64)
        for row, words in enumerate((spurious, core)):
            along = _stacked(vectors, words).astype(np.float64) @ directions.T
            found[row, place] = variances_along(along, moments.total[at], moments.gram[at], moments.count).mean()
    order = np.argsort(found[1] - found[0], kind="stable")
    ranked = tuple(heads[place] for place in order)
    return SpuriousHeads(tuple(spurious), tuple(core), ranked, found[0, order], found[1, order])


def _stacked(
    vectors: Mapping[str, Float32[np.ndarray, " joint"]], words: Sequence[str]
) -> Float32[np.ndarray, "word joint"]:
    return np.stack([vectors[word] for word in words])
