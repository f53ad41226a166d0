"""Spectra of heads: the singular directions of each head's value-output matrix, described by texts, beside the images.

Source: Gentile et al., "From Weights to Concepts" (SITH), CVPR 2026. The matrix is `diag(γ₁) W_V W_O diag(γ) P`, from
the rows that a head reads to the joint space: `γ₁` is the weight of the norm before the layer (1 without such a norm),
`γ` that of the final norm. LayerScale and the weights of norms behind the heads (EVA02) are part of `W_O`. Neither side
is centred, and biases are left out, except that a norm over what attention adds (EVA02-E) centres `W_O` itself.

Right singular vectors `u` are what the head writes. `coherent_pursuit` describes `u` and `−u` by texts, since the sign
of a singular vector is arbitrary; `u` is turned so that its own description is the better one. Before that, the mean
gap between the modalities is removed: the direction from the pool's mean vector to the images' mean unit embedding is
projected out of texts and directions, and texts are centred at their mean. How SITH removes the gap and treats the sign
could not be read at its source; this is our reading.

The weights alone say nothing about use. So each direction stands beside its share of the variance of the head's
contributions over the stored images, `u·Σ·u ÷ tr Σ`, from moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from headspan.errors import SettingsError, counted
from headspan.events import Listener, ignore
from headspan.explore.heads.coherent_pursuit import Descriptions, coherent_pursuit
from headspan.explore.heads.modality_gap import freed_texts, unit_rows, without_gap
from headspan.explore.heads.spectrum import HeadSpectra
from headspan.explore.nearest.similarities import distinct
from headspan.head_names import head_name
from headspan.spans.algorithm import VARIANCE_TOLERANCE
from headspan.store.head_space import Head, stored_heads
from headspan.store.moments_file import MergedMoments
from headspan.store.reader import Store
from headspan.store.schema import without_heads
from headspan.store.selection import Images
from headspan.texts.pool import Pool, read_pool
from headspan.texts.vectors import embed_pool

# The published number of texts for each direction, and the weight of coherence.
COUNT, COHERENCE = 5, 0.3
# Random directions that are described as the heads' are, for comparison.
_RANDOM, _SEED = 200, 0


def spectra(
    store: Store,
    heads: Sequence[Head] | None = None,
    pool: str | Path | Sequence[str] | Pool = "general",
    count: int = COUNT,
    coherence: float = COHERENCE,
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    images: Images | None = None,
) -> HeadSpectra:
    """Singular directions of the value-output matrices of `heads`, described by texts.

    By default these are all stored heads, except those that the store was made without: their matrices are zero.

    Args:
        store: The store to read; nothing is written. Its model is loaded, since stores hold no value matrices.
        heads: Pairs (layer, head).
        pool: The texts that describe directions, as in `text_vectors`.
        count: How many texts describe a direction.
        coherence: λ, how much a text's likeness to the texts chosen before counts.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        weights: As in `text_vectors`.
        images: A selection, indices or a mask of images, over which variances are taken; None for all.

    Raises SettingsError if a head is not stored or writes nothing, or if `count` or `coherence` is out of range;
    ModelError if the model cannot be loaded or is not the one that made the store; and the errors of `text_vectors`.
    """
    without = without_heads(store.attributes)
    every = [head for head in stored_heads(store) if head not in without]
    chosen = distinct(store, every if heads is None else heads)
    if pruned := [head for head in chosen if head in without]:
        raise SettingsError(
            f"{store.path}: was made without {head_name(*pruned[0])}, so its directions are zero; choose another head"
        )
    places = [(store.contents.layer_index(layer, head), head) for layer, head in chosen]
    if count < 1:
        raise SettingsError(f"{counted(count, 'text')} per direction; ask for at least 1")
    if not 0 <= coherence < float("inf"):
        raise SettingsError(f"coherence {coherence} is out of range; give a number from 0")
    named = read_pool(pool)
    few = f"the pool {named.name} has {counted(len(named.texts), 'text')}, but"
    if len(named.texts) < 2:
        raise SettingsError(f"{few} directions are described by how texts differ; give at least 2")
    if len(named.texts) < count:
        raise SettingsError(f"{few} {count} per direction are asked for; give a larger pool, or ask for fewer")
    # First, so that the model is loaded when texts are embedded.
    values, directions = _singular(store, chosen, places, on_progress, weights)
    embedded = embed_pool(store, named, on_progress, weights=weights)
    moments = store.moments(images)
    texts, gap = freed_texts(embedded.vectors, store.embedding_moments())
    rank, joint = directions.shape[1:]
    freed = without_gap(directions.reshape(-1, joint), gap)
    found = _both_sides(freed, texts, count, coherence, on_progress)
    drawn = unit_rows(np.random.default_rng(_SEED).standard_normal((_RANDOM, joint)))
    random = (
        _both_sides(without_gap(drawn, gap), texts, count, coherence, ignore).fidelity.reshape(_RANDOM, 2).max(axis=1)
    )
    # Side 0 is the better described one.
    shape = (len(chosen), rank, 2)
    fidelity = found.fidelity.reshape(shape)
    turned = fidelity[..., 1] > fidelity[..., 0]
    order = np.where(turned[..., None], [1, 0], [0, 1])
    sided = [np.take_along_axis(part.reshape(*shape, count), order[..., None], axis=2) for part in found[:2]]
    directions *= np.where(turned, -1, 1)[..., None]
    return HeadSpectra(
        heads=tuple(chosen),
        pool=embedded.pool,
        images=moments.count,
        singular_values=values,
        directions=directions.astype(np.float32),
        share=np.stack(list(map(partial(_shares, store, moments), chosen, places, directions))),
        indices=sided[0],
        weights=sided[1],
        fidelity=np.take_along_axis(fidelity, order, axis=2),
        random=random,
    )


def _singular(
    store: Store,
    heads: Sequence[Head],
    places: Sequence[tuple[int, int]],
    on_progress: Listener,
    weights: str | Path | None,
) -> tuple[Float64[np.ndarray, "head direction"], Float64[np.ndarray, "head direction joint"]]:
    """Singular values, largest first, and right singular vectors of the heads' value-output matrices."""
    # Imported here, since this is the only step that needs the model and torch.
    from headspan.decompose.values import value_maps
    from headspan.model.convert import to_tower
    from headspan.model.kept import kept_model

    model = kept_model(store.attributes, store.path, weights, on_progress)
    layers = sorted({layer for layer, _ in heads})
    maps = value_maps(to_tower(model.clip.visual, model.name), layers)
    values, directions = [], []
    for (layer, head), place in zip(heads, places, strict=True):
        reads = maps[layers.index(layer), head]
        # A norm over what attention adds gives each head one more coordinate, which stands for the bias.
        writes = store.contents.folded.head_to_joint[place][: reads.shape[1]].astype(np.float64)
        value, direction = value_output_svd(reads, writes)
        values.append(value)
        directions.append(direction)
    return np.stack(values), np.stack(directions)


def value_output_svd(
    reads: Float64[np.ndarray, "width head_dim"], writes: Float64[np.ndarray, "head_dim joint"]
) -> tuple[Float64[np.ndarray, " direction"], Float64[np.ndarray, "direction joint"]]:
    """Singular values and right singular vectors of `reads @ writes`, as many as the head has dimensions.

    The product is not formed: with `reads = Q₁ R₁` and `writesᵀ = Q₂ R₂`, they are those of the small `R₁ R₂ᵀ`.
    """
    left = np.linalg.qr(reads, mode="r")
    right, triangle = np.linalg.qr(writes.T)
    _, values, small = np.linalg.svd(left @ triangle.T, full_matrices=False)
    return values, small @ right.T


def _shares(
    store: Store,
    moments: MergedMoments,
    head: Head,
    place: tuple[int, int],
    directions: Float64[np.ndarray, "direction joint"],
) -> Float64[np.ndarray, " direction"]:
    """`u·Σ·u ÷ tr Σ` of every direction; NaN if the head's contributions do not vary."""
    mean, second = moments.total[place] / moments.count, moments.gram[place] / moments.count
    covariance = second - np.outer(mean, mean)
    own = store.head_directions(*head).astype(np.float64)
    metric = own @ own.T
    variance, square = float((covariance * metric).sum()), float((second * metric).sum())
    if not variance > VARIANCE_TOLERANCE * square:
        return np.full(len(directions), np.nan)
    along = directions @ own.T
    shares: Float64[np.ndarray, " direction"] = np.einsum("dc,dc->d", along @ covariance, along) / variance
    return shares


def _both_sides(
    directions: Float64[np.ndarray, "direction joint"],
    texts: Float64[np.ndarray, "text joint"],
    count: int,
    coherence: float,
    on_progress: Listener,
) -> Descriptions:
    """The descriptions of every direction and of its negative, in turn."""
    sides = np.stack([directions, -directions], axis=1).reshape(-1, directions.shape[1])
    return coherent_pursuit(sides, texts, count, coherence, on_progress)
