"""Concept Consistency Scores: how many of a head's first five texts are consistent with its label.

Source: Madasu, Lal, Howard, "Quantifying Interpretability in CLIP Models with Concept Consistency",
arXiv 2503.11103, and its public code.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from headspan.analyse import results
from headspan.analyse.labels import LABELLED_TEXTS, Labels, read_labels
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class ConceptConsistency:
    """CCS of every head, 0 to 5, and what the study reports of them."""

    labels: Labels
    scores: Int[np.ndarray, "layer head"]

    @property
    def at_k(self) -> list[float]:
        """CCS@K for K = 0 to 5: the share of heads with that score."""
        counts = np.bincount(self.scores.ravel(), minlength=LABELLED_TEXTS + 1)
        return [float(count) for count in counts / self.scores.size]

    @property
    def groups(self) -> dict[str, int]:
        """Number of heads in each group: high = 5, moderate = 3, low ≤ 1; 2 and 4 are in none."""
        scores = self.scores.ravel()
        return {
            "high": int((scores == 5).sum()),
            "moderate": int((scores == 3).sum()),
            "low": int((scores <= 1).sum()),
        }

    @property
    def ccr(self) -> float:
        """Concentrated concept ratio: concepts of more than one high head, over high heads; NaN without any."""
        concepts = Counter(
            name
            for row, names in zip(self.scores.tolist(), self.labels.names, strict=True)
            for score, name in zip(row, names, strict=True)
            if score == 5
        )
        high = sum(concepts.values())
        return sum(count > 1 for count in concepts.values()) / high if high else float("nan")

    def group(self, layer: int, head: int) -> str | None:
        """The group of one head, if it is in one."""
        score = int(self.scores[self.labels.layers.index(layer), head])
        return {0: "low", 1: "low", 3: "moderate", 5: "high"}.get(score)


def concept_consistency(store: Store, run: str | None = None) -> ConceptConsistency:
    """CCS of a labelled run, or of the only one there is; kept in the store as `ccs/<run>`."""
    labels = read_labels(store, run)
    found = ConceptConsistency(labels, labels.consistent.sum(axis=2).astype(np.int8))
    results.save(
        store,
        "ccs",
        labels.run,
        {"scores": (found.scores, ("layer", "head"))},
        {
            "source": labels.source,
            "layers": list(labels.layers),
            "at_k": found.at_k,
            "groups": found.groups,
            # JSON has no NaN.
            "ccr": None if np.isnan(found.ccr) else found.ccr,
        },
    )
    return found


def read_consistency(store: Store, run: str | None = None) -> ConceptConsistency:
    """The stored scores of a run, or of the only one there is."""
    run = results.only_run(store, "ccs", run, "headspan ccs")
    arrays, _ = results.load(store, "ccs", run, "headspan ccs")
    return ConceptConsistency(read_labels(store, run), arrays["scores"])
