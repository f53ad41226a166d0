"""SpLiCE on the images of a store: which texts of a pool they are made of, beside a pool without meaning, as a table.

The null rotates the vectors of the texts at random: the same angles between texts, at no particular place. What the
rotated texts explain of the images, any so many texts would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.features.pairs.image_vectors import embeddings
from headspan.features.pairs.units import units
from headspan.features.scores.splice import PENALTY, Splice, splice
from headspan.frames import Tabular
from headspan.spans.draws import random_rotation
from headspan.store.kept_means import embedding_mean
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images, usable_images
from headspan.texts.pool import Pool, read_pool
from headspan.texts.vectors import text_vectors

# Images that are drawn if none are chosen.
MOST = 1000
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, repr=False)
class SplicedImages(Tabular):
    """The texts of images, with the mean weight and the share of the images that have each text."""

    pool: str
    images: int
    penalty: float
    texts: tuple[str, ...]
    # By text: the mean weight, and the number of images with a weight.
    weight: Float64[np.ndarray, " text"]
    having: Int64[np.ndarray, " text"]
    # Mean number of texts of an image, and mean cosines of images with what their texts give: with the mean of the
    # images added, and without; with the pool, and with the pool rotated at random.
    l0: float
    cosine: float
    centred_cosine: float
    rotated_l0: float
    rotated_cosine: float
    rotated_centred_cosine: float
    # The mean of the images alone, which takes no text.
    mean_cosine: float

    def __repr__(self) -> str:
        return (
            f"SplicedImages({counted(self.images, 'image')}, {self.l0:.1f} of {len(self.texts):,} texts each, cosine "
            f"{self.cosine:.3f})"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        order = np.lexsort((np.arange(len(self.texts)), -self.weight))
        return {
            "text": [self.texts[each] for each in order],
            "weight": self.weight[order].tolist(),
            "images": self.having[order].tolist(),
            "share": (self.having[order] / self.images).tolist(),
        }


def splice_images(
    store: Store,
    texts: str | Path | Sequence[str] | Pool = "general",
    *,
    images: Images | None = None,
    penalty: float = PENALTY,
    most: int = MOST,
    seed: int = 0,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> SplicedImages:
    """Decompose images of a store into texts, as `splice` does, with the mean of all images of the store.

    Args:
        store: The store, which is only read.
        texts: The pool of texts, as in `text_vectors`.
        images: Some images, as in `Store.moments`; by default all.
        penalty: λ: the larger, the fewer texts.
        most: At most so many of the images, drawn at random.
        seed: Decides which images are drawn, and the rotation.
        weights: The place of the model's weights, as in `text_vectors`.
        on_progress: A listener.

    Raises SettingsError if a number is out of range, the pool has fewer than 2 texts, or no image can be used; and the
    errors of `text_vectors`.
    """
    if not 0 < penalty < float("inf") or most < 1 or seed < 0:
        raise SettingsError(
            f"penalty {penalty}, {counted(most, 'image')}, seed {seed}: give a penalty above 0, at least 1 image and a "
            "seed from 0"
        )
    pool = read_pool(texts)
    if len(pool.texts) < 2:
        raise SettingsError(f"the pool {pool.name} has {counted(len(pool.texts), 'text')}; give at least 2")
    chosen = chosen_images(store, images)
    chosen = chosen[usable_images(store, chosen)]
    if not len(chosen):
        raise SettingsError(f"{store.path}: no image could be used; choose other images")
    random = np.random.default_rng(seed)
    if len(chosen) > most:
        chosen = np.sort(random.choice(chosen, most, replace=False))
    vectors = text_vectors(store, pool, on_progress, weights=weights)
    mean = embedding_mean(store).astype(np.float32)
    rotated = (units(vectors) @ random_rotation(store.joint, random)).astype(np.float32)
    weight, having = np.zeros(len(vectors)), np.zeros(len(vectors), np.int64)
    own, null, alone = [], [], 0.0
    for begin in range(0, len(chosen), _AT_ONCE):
        some = chosen[begin : begin + _AT_ONCE]
        given = embeddings(store, store.rows[some])
        found = splice(given, vectors, penalty, mean)
        weight += found.weights.sum(axis=0, dtype=np.float64)
        having += (found.weights > 0).sum(axis=0)
        own.append(_sums(found, len(some)))
        null.append(_sums(splice(given, rotated, penalty, mean), len(some)))
        alone += float((units(given) @ units(mean[None])[0]).sum())
        on_progress(Progress("images", begin + len(some), len(chosen)))
    count = len(chosen)
    l0, cosine, centred = (float(each) / count for each in np.sum(own, axis=0))
    rotated_l0, rotated_cosine, rotated_centred = (float(each) / count for each in np.sum(null, axis=0))
    return SplicedImages(
        pool.name,
        count,
        penalty,
        tuple(pool.texts),
        weight / count,
        having,
        l0,
        cosine,
        centred,
        rotated_l0,
        rotated_cosine,
        rotated_centred,
        alone / count,
    )


def _sums(found: Splice, images: int) -> tuple[float, float, float]:
    return images * found.l0, images * found.cosine, images * found.centred_cosine
