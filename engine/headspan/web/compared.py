"""What is compared of two stores: their labels, made one where they name one concept, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from headspan.concepts.comparison import Method, method_of
from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import Labels
from headspan.concepts.merging import merge_labels
from headspan.errors import StoreError
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.web.head_results import HeadResults


@dataclass(frozen=True)
class Compared:
    """One of the stores: its labels, its scores if they were made from these, and its heads' shares of the variance."""

    name: str
    labels: Labels | None
    scores: ConceptConsistency | None
    # None without scores, or if the texts that they were made from cannot be read.
    method: Method | None
    # Empty if the store shows no image yet.
    shares: Mapping[Head, float]
    notices: tuple[str, ...]

    @classmethod
    def of(cls, name: str, store: Store, results: HeadResults) -> Compared:
        """One of the stores with its results; `name` is its name in notices."""
        labels, scores, method, notices = results.labels, results.found, None, []
        if labels is None:
            notices.append(f"{name} has no labels; run headspan textspan and headspan label")
        elif scores is None:
            notices.append(f"{name} has no scores of its labels; run headspan ccs --run {labels.run}")
        else:
            with suppress(StoreError):
                method = method_of(store, scores)
        shares: dict[Head, float] = {}
        if store.images:
            values = store.magnitudes().variance_share.ravel().tolist()
            shares = dict(zip(stored_heads(store), values, strict=True))
        return cls(name, labels, scores, method, shares, tuple(notices))

    @property
    def score_counts(self) -> list[int]:
        """How many heads have each score from 0 to 5; empty without scores."""
        return [] if self.scores is None else np.bincount(self.scores.scores.ravel(), minlength=6).tolist()

    @property
    def score_counts_by_chance(self) -> list[float]:
        """How many heads would have each score by chance; empty if that is not known."""
        if self.scores is None or self.scores.chance is None:
            return []
        return [share * self.scores.scores.size for share in self.scores.chance.expected_at_k]

    def score(self, heads: Sequence[Head]) -> float | None:
        """The mean score of some heads; None without heads or scores."""
        if self.scores is None or not heads:
            return None
        layers, scores = self.scores.labels.layers, self.scores.scores
        return float(np.mean([scores[layers.index(layer), head] for layer, head in heads]))

    def share(self, heads: Sequence[Head]) -> float | None:
        """The sum of the heads' shares of the variance; None without heads, or if the shares are not known."""
        return sum(self.shares[head] for head in heads) if heads and self.shares else None


def heads_by_label(one: Compared, other: Compared) -> dict[str, tuple[list[Head], list[Head]]]:
    """The heads of every label in both stores; labels that both have first, then those of more heads.

    Labels that differ only in plural or case are one; if a language model chose labels freely, also those of which one
    is a prefix of the other.
    """
    both = [each.labels for each in (one, other)]
    free = any(labels is not None and labels.free for labels in both)
    names = [name for labels in both if labels is not None for row in labels.names for name in row]
    merged = merge_labels(names, prefixes=free)
    found: dict[str, tuple[list[Head], list[Head]]] = {label: ([], []) for label in merged.values()}
    for side, labels in enumerate(both):
        if labels is not None:
            for layer, row in zip(labels.layers, labels.names, strict=True):
                for head, name in enumerate(row):
                    if name is not None:
                        found[merged[name]][side].append((layer, head))

    def place(label: str) -> tuple[bool, int, str]:
        first, second = found[label]
        return not (first and second), -len(first) - len(second), label

    return {label: found[label] for label in sorted(found, key=place)}


def different_methods(one: Compared, other: Compared) -> list[str]:
    """A sentence if the scores of both stores were made in different ways."""
    if one.method is None or other.method is None or one.method == other.method:
        return []
    ways = [
        f"{each.name} by pool {each.method.pool}, labels by {each.method.labels}, votes by {each.method.votes}"
        for each in (one, other)
        if each.method is not None
    ]
    return [f"the scores cannot be compared, since they were made in different ways: {'; '.join(ways)}"]
