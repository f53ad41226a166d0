"""Score every head for each factor of a scene, as head pursuit, text shares and spectra rank heads.

Each function returns, by factor, a score for every stored head, layer by layer; larger is ranked higher.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from headspan.events import Listener, ignore
from headspan.explore.heads.pursuit import COUNT, pursue
from headspan.explore.heads.spectra import spectra
from headspan.spans.algorithm import Principal
from headspan.spans.description import head_principals
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes
from headspan.world.checks import FACTOR_OF

Ranking = dict[str, Float[np.ndarray, " head"]]
# A background's kind and its colour are one concept of the pool.
_CONCEPT_OF = {factor: concept for concept, factor in FACTOR_OF.items()} | {"background": "backgrounds"}


def magnitudes(store: Store, classes: Mapping[str, Classes]) -> Ranking:
    """The variance of a head's contributions, which is the same for every factor: a baseline."""
    variances = np.array([head.variance for head in _principals(store)])
    return dict.fromkeys(classes, variances)


def pursuit_scores(store: Store, classes: Mapping[str, Classes]) -> Ranking:
    """The share of a head's variance in the span of its first words, as `head_pursuit` ranks heads.

    The words are the factor's values, each with the vector by which it is classified.
    """
    heads = _principals(store)
    return {
        factor: pursue(heads, each.vectors, min(COUNT, len(each.names)))[1][:, -1] for factor, each in classes.items()
    }


def text_scores(store: Store, classes: Mapping[str, Classes]) -> Ranking:
    """The variance of a value's score that a head makes, `t·Σ·t`, as in `text_shares`, summed over the factor's values.

    Values compete with each other, so each vector `t` is taken minus their mean.
    """
    found: Ranking = {}
    heads = _principals(store)
    for factor, each in classes.items():
        vectors = each.vectors - each.vectors.mean(axis=0)
        along = [vectors @ head.basis for head in heads]
        found[factor] = np.array(
            [np.einsum("tr,rs,ts->", each, head.covariance, each) for each, head in zip(along, heads, strict=True)]
        )
    return found


def spectra_scores(store: Store, on_progress: Listener = ignore) -> Ranking:
    """The share of a head's variance along singular directions that texts of the factor's concept describe.

    A direction counts by the weights of the concept's texts among the texts of its two sides, times the fidelity of
    each side's description. The texts are the pool `world`.
    """
    found = spectra(store, pool="world", on_progress=on_progress)
    assert found.pool.concepts is not None
    concepts = np.array(found.pool.concepts)[found.indices]
    weights = np.where(found.indices < 0, 0, found.weights)
    weights /= np.maximum(weights.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)
    # A head whose contributions do not vary has no shares.
    shares = np.nan_to_num(found.share)
    return {
        factor: (shares * (((concepts == concept) * weights).sum(axis=-1) * found.fidelity).sum(axis=-1)).sum(axis=-1)
        for factor, concept in _CONCEPT_OF.items()
    }


def _principals(store: Store) -> list[Principal]:
    return head_principals(store, store.layers, store.joint, store.moments())
