"""Check whether the nearest images through a concept's heads share the concept's factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from headspan.explore.nearest.similarities import mean_contributions, similarities
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.world.checks import FACTOR_OF, NeighbourCheck
from headspan.world.compared import draws_of, other_heads
from headspan.world.scores import chance_of_same, precision_at, same_value


def neighbour_checks(
    store: Store, concepts: Mapping[str, tuple[Head, ...]], truths: Mapping[str, Sequence[str | None]]
) -> tuple[NeighbourCheck, ...]:
    """Precision@10 for each concept, by its heads, all heads, the whole embedding, and as many other heads.

    `truths` has every image's value of each factor. Queries and candidates are the images that have one.
    """
    every = stored_heads(store)
    through_all = similarities(store, mean_contributions(store, every), every)
    embeddings = store.embedding / store.norm[:, 2:]
    return tuple(
        _check(store, concept, heads, truths[FACTOR_OF[concept]], through_all, embeddings, every)
        for concept, heads in concepts.items()
    )


def _check(
    store: Store,
    concept: str,
    heads: tuple[Head, ...],
    truths: Sequence[str | None],
    through_all: Float32[np.ndarray, "image image"],
    embeddings: Float32[np.ndarray, "image joint"],
    every: Sequence[Head],
) -> NeighbourCheck:
    having = np.flatnonzero([truth is not None for truth in truths])
    same = same_value(np.array([truth for truth in truths if truth is not None]))

    def through(vectors: Float32[np.ndarray, "image joint"]) -> float:
        return precision_at(vectors[having] @ vectors[having].T, same)

    return NeighbourCheck(
        concept,
        heads,
        precision_at(similarities(store, mean_contributions(store, heads)[having], heads)[:, having], same),
        precision_at(through_all[np.ix_(having, having)], same),
        chance_of_same(same),
        len(having),
        through(embeddings),
        draws_of([through(mean_contributions(store, others)) for others in other_heads(every, heads)]),
    )
