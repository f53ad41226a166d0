"""Whom the agreement of a run is measured between: every two judges, and people with judges and their majority."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Int

from headspan.concepts.agreement import REPLICATES, Agreement, agree
from headspan.concepts.ccs import NO_VOTE, ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS

MAJORITY = "majority"
# Votes of one rater, as in `Votes.cast`.
Cast = Int[np.ndarray, "layer head text"]


@dataclass(frozen=True, slots=True)
class PairOfRaters:
    """Two raters' agreement on texts, and on the scores (0 to 5) of heads on all of whose texts both voted."""

    first: str
    second: str
    texts: Agreement
    heads: Agreement


def rater_agreement(
    found: ConceptConsistency, people: Mapping[str, Cast], replicates: int = REPLICATES, seed: int = 0
) -> list[PairOfRaters]:
    """Agreement of every two judges, of every two people, and of people with judges and with their majority."""
    judges = dict(zip(found.votes.judges, found.votes.cast, strict=True))
    pairs = list(combinations([*judges.items(), *people.items()], 2))
    if people and len(judges) > 1:
        voted = (found.votes.cast != NO_VOTE).any(axis=0)
        majority = np.where(voted, found.consistent, NO_VOTE).astype(np.int8)
        pairs += [((MAJORITY, majority), person) for person in people.items()]
    return [
        PairOfRaters(first, second, *_agreements(one, other, found.votes.texts, replicates, seed))
        for (first, one), (second, other) in pairs
    ]


def _agreements(
    one: Cast, other: Cast, texts: Int[np.ndarray, "layer head"], replicates: int, seed: int
) -> tuple[Agreement, Agreement]:
    both = (one != NO_VOTE) & (other != NO_VOTE)
    # The head that a text belongs to.
    owner = np.broadcast_to(np.arange(texts.size).reshape(*texts.shape, 1), both.shape)
    whole = both.sum(axis=2) == LABELLED_TEXTS
    return (
        agree(one[both].astype(int), other[both].astype(int), owner[both], replicates, seed),
        agree(one[whole].sum(axis=1), other[whole].sum(axis=1), np.arange(whole.sum()), replicates, seed),
    )
