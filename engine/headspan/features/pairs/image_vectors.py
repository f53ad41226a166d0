"""The vectors of images in a space: unit embeddings, or normalised coordinates of heads or patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import SettingsError
from headspan.features.pairs.space import EMBEDDING, HEADS, KINDS, PATCHES, Space
from headspan.head_names import Head, head_name
from headspan.store.moments_file import covariance_of
from headspan.store.picked_rows import picked_rows
from headspan.store.reader import Store

_SINGLE = np.dtype(np.float32)
# Images on which the scale of patches is measured.
_MEASURED = 256


def space_of(store: Store, kind: str, heads: Sequence[Head] | None, layers: Sequence[int] | None) -> Space:
    """The space `kind` of a store: of `heads`, or of all heads of `layers`.

    Raises SettingsError if the kind is unknown, heads and kind do not go together, or the store lacks the numbers.
    """
    if kind not in KINDS:
        raise SettingsError(f"space {kind!r} is unknown; choose from {', '.join(KINDS)}")
    checksums = store.attributes.get("weights_sha256"), store.attributes.get("text_sha256")
    if kind == EMBEDDING:
        if heads is not None or layers is not None:
            raise SettingsError("heads and layers are of the spaces heads and patches; choose one of those spaces")
        return Space(EMBEDDING, store.joint, *checksums)
    if (heads is None) == (layers is None):
        raise SettingsError(f"space {kind!r} needs heads, or layers for all heads of them; give one of both")
    chosen = (
        [(int(layer), int(head)) for layer, head in heads]
        if heads is not None
        else [(layer, head) for layer in layers or () for head in range(store.heads_per_layer)]
    )
    if not chosen or len(set(chosen)) < len(chosen):
        raise SettingsError(f"the heads of space {kind!r} must be at least one, and each named once")
    for layer, head in chosen:
        store.contents.layer_index(layer, head)
    if kind == PATCHES:
        # Raises if they are not stored.
        store.contents.maps("patches")
    space = Space(kind, len(chosen) * store.head_dim, *checksums, tuple(chosen))
    variance = _variance(store, space)
    if not variance > 0:
        raise SettingsError(f"{store.path}: {space} do not vary over its images; choose other heads")
    return Space(kind, space.width, *checksums, space.heads, 1 / math.sqrt(variance))


def patches_of(store: Store, space: Space) -> int:
    """How many vectors an image has in a space: its patches, else 1."""
    return store.tokens - store.prefix_tokens if space.kind == PATCHES else 1


def embeddings(store: Store, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "row joint"]:
    """The embeddings of some rows, not normalised; no other rows are read."""
    return picked_rows(store.contents, "embedding", rows, [np.arange(store.joint)], _SINGLE)


def image_vectors(store: Store, space: Space, rows: Int64[np.ndarray, " row"]) -> Float32[np.ndarray, "vector width"]:
    """The vectors of images that could be used, given by their rows; in `patches`, all patches of each image."""
    contents = store.contents
    norm = picked_rows(contents, "norm", rows, [np.arange(3)], _SINGLE)
    if space.kind == EMBEDDING:
        found = embeddings(store, rows)
        found /= norm[:, 2:]
        return found
    each = patches_of(store, space)
    factor = np.float32(space.scale) / (norm[:, 1] * norm[:, 2])
    out = np.empty((len(rows), each, len(space.heads), store.head_dim), np.float32)
    places = list(enumerate(space.heads))
    for layer, group in groupby(places, key=lambda place: place[1][0]):
        columns, heads = zip(*((column, head) for column, (_, head) in group), strict=True)
        chosen = [np.array([contents.layer_index(layer)]), np.array(heads)]
        if space.kind == HEADS:
            found = picked_rows(contents, "heads", rows, [*chosen, np.arange(store.head_dim)], _SINGLE)[:, 0, :, None]
        else:
            tokens = np.arange(store.prefix_tokens, store.tokens)
            chosen += [tokens, np.arange(store.head_dim)]
            found = picked_rows(contents, "patches", rows, chosen, _SINGLE)[:, 0]
        # From `[row, head, token, head_dim]`.
        out[:, :, list(columns)] = found.swapaxes(1, 2) * factor[:, None, None, None]
    return out.reshape(len(rows) * each, -1)


def directions_in_joint(
    store: Store, space: Space, directions: Float32[np.ndarray, "feature width"]
) -> Float32[np.ndarray, "feature joint"]:
    """Directions of a space as directions in joint space, where texts are; not made unit.

    A head's fixed matrix maps its coordinates to joint space; directions over several heads are summed.
    """
    if space.kind == EMBEDDING:
        return directions
    parts = directions.reshape(len(directions), len(space.heads), store.head_dim)
    found = np.zeros((len(directions), store.joint), np.float32)
    for place, head in enumerate(space.heads):
        found += parts[:, place] @ store.head_directions(*head)[: store.head_dim]
    return found


def _variance(store: Store, space: Space) -> float:
    """The sum of the variances of all coordinates of a space, before they are scaled."""
    if space.kind == HEADS:
        moments = store.moments()
        total = 0.0
        for layer, head in space.heads:
            place = store.contents.layer_index(layer), head
            covariance = covariance_of(moments.total[place], moments.gram[place], moments.count)
            total += float(np.trace(covariance[: store.head_dim, : store.head_dim]))
        return total
    rows = store.contents.good_rows()
    some = rows[np.linspace(0, len(rows) - 1, min(_MEASURED, len(rows))).astype(np.int64)] if len(rows) else rows
    return float(image_vectors(store, space, some).astype(np.float64).var(axis=0).sum()) if len(some) else 0.0


def refuse_other_space(space: Space, store: Store, like: str) -> Space:
    """Raise SettingsError if a store's vectors are not of `space`, which is that of `like`; return `space`."""
    kind, heads = space.kind, space.heads or None
    checksums = store.attributes.get("weights_sha256"), store.attributes.get("text_sha256")
    width = store.joint if kind == EMBEDDING else len(space.heads) * store.head_dim
    for layer, head in space.heads:
        if layer not in store.layers or head >= store.heads_per_layer:
            raise SettingsError(
                f"{store.path}: holds no {head_name(layer, head)}, which {like} needs; choose a store of the same "
                "model and layers"
            )
    difference = space.difference(Space(kind, width, *checksums, heads or ()))
    if difference:
        raise SettingsError(
            f"{like} and {store.path} are of different spaces ({difference}); choose stores of one model and one space"
        )
    if kind == PATCHES:
        store.contents.maps("patches")
    return space
