"""Concept Consistency Scores: how many of a head's first five texts are consistent with its label.

Source: Madasu, Lal, Howard, "Quantifying Interpretability in CLIP Models with Concept Consistency",
arXiv 2503.11103, and its public code; association and entanglement: Madasu et al., arXiv 2409.06579. What is
a reading of ours, not read at its source, is listed in UNSOURCED.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from headspan.concepts.labels import LABELLED_TEXTS, Labels, read_labels
from headspan.errors import SettingsError, StoreError
from headspan.events import Listener, ignore
from headspan.spans.result import HeadSpans, read_spans
from headspan.store import results
from headspan.store.reader import Store

# A vote that is not there: no label, no text, or an answer that was none.
NO_VOTE = -1
# Said wherever the result is printed or kept.
UNSOURCED = {
    "association": "association score: mean over labelled heads of the share of texts that are consistent",
    "entanglement": "entanglement score: share of labelled heads whose label is another head's too",
    "majority": "votes are merged by majority; a tie counts as not consistent",
}


@dataclass(frozen=True, slots=True)
class Votes:
    """Every judge's vote on every head's first texts: 1, 0, or NO_VOTE."""

    judges: tuple[str, ...]
    cast: Int[np.ndarray, "judge layer head text"]
    # How many of the first five texts a head has.
    texts: Int[np.ndarray, "layer head"]

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """What more than half of the votes that were cast say; where that is no more than half, it is not."""
        return 2 * (self.cast == 1).sum(axis=0) > (self.cast != NO_VOTE).sum(axis=0)

    @property
    def source(self) -> str:
        """Who voted, in words."""
        if len(self.judges) == 1:
            return self.judges[0]
        return f"majority of {', '.join(self.judges)}"


@dataclass(frozen=True, slots=True)
class ConceptConsistency:
    """CCS of every head, 0 to 5, and what the studies report of them."""

    labels: Labels
    votes: Votes

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """Whether each of a head's first texts is consistent with its label."""
        return self.votes.consistent

    @property
    def scores(self) -> Int[np.ndarray, "layer head"]:
        """CCS: the number of consistent texts."""
        return self.consistent.sum(axis=2).astype(np.int8)

    @property
    def at_k(self) -> list[float]:
        """CCS@K for K = 0 to 5: the share of heads with that score."""
        scores = self.scores
        counts = np.bincount(scores.ravel(), minlength=LABELLED_TEXTS + 1)
        return [float(count) for count in counts / scores.size]

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
            for row, names in zip(self.scores.tolist(), self.labels.concepts, strict=True)
            for score, name in zip(row, names, strict=True)
            if score == 5
        )
        high = sum(concepts.values())
        return sum(count > 1 for count in concepts.values()) / high if high else float("nan")

    @property
    def heads_per_concept(self) -> dict[str, int]:
        """How many heads carry each concept, the commonest first; of equally common ones, by name."""
        counts = Counter(name for row in self.labels.concepts for name in row if name is not None)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def association(self) -> float:
        """Mean over labelled heads of the share of their texts that are consistent; NaN without any. UNSOURCED."""
        known = self.labels.labelled & (self.votes.texts > 0)
        return float((self.scores[known] / self.votes.texts[known]).mean()) if known.any() else float("nan")

    @property
    def entanglement(self) -> float:
        """Share of labelled heads whose concept another head carries too; NaN without any. UNSOURCED."""
        counts = self.heads_per_concept.values()
        return sum(count for count in counts if count > 1) / sum(counts) if counts else float("nan")

    def group(self, layer: int, head: int) -> str | None:
        """The group of one head, if it is in one."""
        score = int(self.scores[self.labels.layers.index(layer), head])
        return {0: "low", 1: "low", 3: "moderate", 5: "high"}.get(score)

    def layer(self, layer: int) -> ConceptConsistency:
        """The same of one layer alone: its heads, its shares, its ratio."""
        place = self.labels.layers.index(layer)
        one = slice(place, place + 1)
        labels, votes = self.labels, self.votes
        consistent = None if labels.consistent is None else labels.consistent[one]
        # Labels that are one concept in the whole model are one concept here.
        concepts = labels.concepts[one]
        return ConceptConsistency(
            Labels(labels.run, labels.source, (layer,), concepts, consistent),
            Votes(votes.judges, votes.cast[:, one], votes.texts[one]),
        )

    def summary(self) -> dict[str, Any]:
        """The numbers, as JSON takes them: None for what is not defined."""
        found: dict[str, Any] = {"at_k": self.at_k, "groups": self.groups}
        for name in ("ccr", "association", "entanglement"):
            value = getattr(self, name)
            found[name] = None if np.isnan(value) else value
        return found


def concept_consistency(
    store: Store, run: str | None = None, overwrite: bool = False, on_progress: Listener = ignore
) -> ConceptConsistency:
    """CCS of a run whose labels brought their votes, or of the only one there is; kept as `ccs/<run>`.

    SettingsError where the labels are a language model's, whose votes judges must give (`judge_heads`). StoreError
    where the run has other votes (judges', say), unless `overwrite`, which deletes them.
    """
    labels = read_labels(store, run)
    if labels.consistent is None:
        raise SettingsError(
            f"labels of run {labels.run!r} are from {labels.source}, and no judge has voted on them; name judges with "
            "--judge, or label by the pool's concepts again with headspan label"
        )
    spans = read_spans(store, labels.run)
    texts = text_counts(spans)
    exists = np.arange(LABELLED_TEXTS) < texts[..., None]
    cast = np.where(exists & labels.labelled[..., None], labels.consistent.astype(np.int8), np.int8(NO_VOTE))
    found = ConceptConsistency(labels, Votes((labels.source,), cast[None], texts))
    save_scores(store, found, overwrite=overwrite, on_progress=on_progress)
    return found


def text_counts(spans: HeadSpans) -> Int[np.ndarray, "layer head"]:
    """How many of the first five texts each head has."""
    return (spans.indices[..., :LABELLED_TEXTS] >= 0).sum(axis=2).astype(np.int8)


def save_scores(
    store: Store,
    found: ConceptConsistency,
    arrays: dict[str, results.Named] | None = None,
    settings: dict[str, Any] | None = None,
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> None:
    """Keep scores, votes and what they were made from as `ccs/<run>`; StoreError as in `results.save`."""
    votes = found.votes
    results.save(
        store,
        "ccs",
        found.labels.run,
        {
            "scores": (found.scores, ("layer", "head")),
            "votes": (votes.cast, ("judge", "layer", "head", "text")),
            "texts": (votes.texts, ("layer", "head")),
            **(arrays or {}),
        },
        {
            "source": votes.source,
            "labels_source": found.labels.source,
            "judges": list(votes.judges),
            "layers": list(found.labels.layers),
            **found.summary(),
            "by_layer": {str(layer): found.layer(layer).summary() for layer in found.labels.layers},
            "heads_per_concept": found.heads_per_concept,
            "unsourced": UNSOURCED,
            **(settings or {}),
        },
        overwrite,
        on_progress,
    )


def read_scores(store: Store, run: str | None = None) -> ConceptConsistency:
    """The stored scores of a run, or of the only one there is."""
    run = results.only_run(store, "ccs", run)
    arrays, settings = results.load(store, "ccs", run)
    if "votes" not in arrays:
        raise StoreError(f"{store.path}: ccs run {run!r} was made by an earlier headspan; run headspan ccs --overwrite")
    with results.as_written(store, "ccs", run):
        judges, votes, texts = tuple(map(str, settings["judges"])), arrays["votes"], arrays["texts"]
    return ConceptConsistency(read_labels(store, run), Votes(judges, votes, texts))
