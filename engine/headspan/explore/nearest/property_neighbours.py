"""Neighbours through all heads of a property, beside those through the embedding and through equally many random heads.

Source: Madasu et al., arXiv 2409.06579 (CLIP-InterpreT): the mean of the contributions of all heads that have the
property's label. The random heads are drawn outside the property, so the difference shows what its heads add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from headspan.concepts.labelled_heads import heads_of
from headspan.errors import counted
from headspan.events import Listener, ignore
from headspan.explore.nearest.neighbours import Neighbours, nearest, query_vector
from headspan.explore.nearest.similarities import distinct, refuse_other_vectors
from headspan.explore.query.query_image import Image, QueryImage, query_image
from headspan.frames import Tabular
from headspan.head_names import head_name
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class Through:
    """The neighbours through some heads, or through the whole embedding."""

    # "property", "embedding", "random 1", "random 2", …
    name: str
    # None for the whole embedding.
    heads: tuple[Head, ...] | None
    neighbours: Neighbours

    @property
    def title(self) -> str:
        """The name and the heads."""
        return f"{self.name}: {'the whole embedding' if self.heads is None else in_words(self.heads)}"


@dataclass(frozen=True, slots=True, repr=False)
class PropertyNeighbours(Tabular):
    """The neighbours of one query through a property's heads, through the embedding, and through random heads."""

    # The key of a stored image, a file's name, or a text.
    query: str
    # None if the heads were named one by one.
    label: str | None
    heads: tuple[Head, ...]
    # The seed of the random heads. Each draw has as many heads as the property, or all others if they are fewer.
    seed: int
    # The property first, then the embedding, then the random draws.
    columns: tuple[Through, ...]

    def __repr__(self) -> str:
        name = "" if self.label is None else f"{self.label!r}, "
        return (
            f"PropertyNeighbours({self.query!r} through {name}{counted(len(self.heads), 'head')}: "
            f"{', '.join(each.name for each in self.columns)})"
        )

    def through(self, name: str) -> Neighbours:
        """The neighbours of the column of that name. Raises KeyError if there is none."""
        return {each.name: each.neighbours for each in self.columns}[name]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        parts = [(each, each.neighbours) for each in self.columns]
        # One reading of the plan for all columns.
        store = self.columns[0].neighbours.store
        samples = store.samples(np.concatenate([found.images for _, found in parts]), ["key", "caption"])
        return {
            "through": [each.name for each, found in parts for _ in found.images],
            "heads": [in_words(each.heads) for each, found in parts for _ in found.images],
            "rank": [rank for _, found in parts for rank in range(1, len(found.images) + 1)],
            "image": [image for _, found in parts for image in found.images.tolist()],
            "key": samples["key"].to_pylist(),
            "caption": samples["caption"].to_pylist(),
            "score": [float(score) for _, found in parts for score in found.scores],
        }


def property_neighbours(
    store: Store,
    image: Image | QueryImage,
    heads: str | Sequence[Head],
    count: int = 10,
    seed: int = 0,
    on_progress: Listener = ignore,
    *,
    draws: int = 3,
    run: str | None = None,
    weights: str | Path | None = None,
) -> PropertyNeighbours:
    """The `count` nearest images to an image through `heads`, through the embedding, and through random heads.

    `heads` is a label, whose heads are those of the run of labels `run`, or a list of (layer, head). Scores are dot
    products of mean contributions divided by `‖embedding‖`; those of the embedding are cosines. `draws` sets of as many
    heads are drawn among the other stored heads, with `seed`. `image` and `weights` are as in `nearest_to_image`.

    Raises SettingsError if a head, the label or the image is not in the store, and the errors of `query_image` and
    `heads_of`.
    """
    label, chosen = _label_and_heads(store, heads, run)
    query = query_image(store, image, on_progress, weights=weights)

    def vector(of: Sequence[Head] | None) -> Float32[np.ndarray, " joint"]:
        return query_vector(store, query, of)

    return _side_by_side(store, query.name, label, chosen, vector, count, seed, draws, query.image)


def property_neighbours_of_vector(
    store: Store,
    vector: Float[np.ndarray, " joint"],
    heads: str | Sequence[Head],
    count: int = 10,
    seed: int = 0,
    *,
    name: str = "vector",
    draws: int = 3,
    run: str | None = None,
) -> PropertyNeighbours:
    """As `property_neighbours`, for a unit vector of the joint space, such as a text's; `name` stands for it."""
    label, chosen = _label_and_heads(store, heads, run)
    refuse_other_vectors(store, np.asarray(vector)[None])
    query = np.asarray(vector, np.float32)
    return _side_by_side(store, name, label, chosen, lambda of: query, count, seed, draws, None)


def in_words(heads: Sequence[Head] | None) -> str:
    """The heads, as in "L22.H13 L23.H4"; "all" for the whole embedding."""
    return "all" if heads is None else " ".join(head_name(layer, head) for layer, head in heads)


def _label_and_heads(store: Store, heads: str | Sequence[Head], run: str | None) -> tuple[str | None, list[Head]]:
    return (heads, heads_of(store, heads, run)) if isinstance(heads, str) else (None, distinct(store, heads))


def _side_by_side(
    store: Store,
    name: str,
    label: str | None,
    heads: list[Head],
    vector: Callable[[Sequence[Head] | None], Float32[np.ndarray, " joint"]],
    count: int,
    seed: int,
    draws: int,
    without: int | None,
) -> PropertyNeighbours:
    through: list[tuple[str, list[Head] | None]] = [("property", heads), ("embedding", None)]
    through += [(f"random {number}", some) for number, some in enumerate(random_heads(store, heads, seed, draws), 1)]
    columns = []
    for title, some in through:
        # Random heads depend on the property and the seed alone, so further queries of the property read sketches.
        found = nearest(store, vector(some), some, count, without)
        columns.append(Through(title, None if some is None else tuple(some), found))
    return PropertyNeighbours(name, label, tuple(heads), seed, tuple(columns))


def random_heads(store: Store, heads: Sequence[Head], seed: int, draws: int) -> list[list[Head]]:
    """Different sets of as many heads as `heads`, outside them, at most `draws`, each in the order of layers."""
    others = [head for head in stored_heads(store) if head not in set(heads)]
    random, found = np.random.default_rng(seed), []
    for _ in range(draws):
        places = sorted(random.permutation(len(others))[: len(heads)].tolist())
        if places and places not in found:
            found.append(places)
    return [[others[place] for place in places] for places in found]
