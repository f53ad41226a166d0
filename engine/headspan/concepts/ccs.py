"""Concept Consistency Scores: how many of a head's first five texts are consistent with its label.

Source: Madasu, Lal, Howard, "Quantifying Interpretability in CLIP Models with Concept Consistency",
arXiv 2503.11103, and its public code; association and entanglement: Madasu et al., arXiv 2409.06579. UNSOURCED
lists the formulas that are our interpretation, since the papers do not give them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from headspan.concepts.labels import LABELLED_TEXTS, Labels, of_older, read_labels, spans_of
from headspan.config import as_ranges
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import Listener, ignore
from headspan.frames import Tabular
from headspan.spans.result import HeadSpans, place_of
from headspan.store import results
from headspan.store.lineage import Lineage, lineage_of, refuse_older
from headspan.store.reader import Store
from headspan.store.write.save_result import save_result

# A missing vote: the head has no label or no such text, or the judge gave no usable answer.
NO_VOTE = -1
# Printed and stored with every result.
UNSOURCED = {
    "association": "association score: mean over labelled heads of the share of texts that are consistent",
    "entanglement": "entanglement score: share of labelled heads whose label is another head's too",
    "majority": "votes are merged by majority; a tie counts as not consistent",
}


@dataclass(frozen=True, slots=True, repr=False)
class Votes:
    """Every judge's vote on every head's first texts."""

    judges: tuple[str, ...]
    # 1 if judged consistent, 0 if not, or NO_VOTE.
    cast: Int[np.ndarray, "judge layer head text"]
    # How many of the first five texts each head has.
    texts: Int[np.ndarray, "layer head"]

    def __repr__(self) -> str:
        return f"Votes({counted(int((self.cast != NO_VOTE).sum()), 'vote')} by {', '.join(self.judges)})"

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """Whether more than half of the votes that were cast say so; a tie is not consistent."""
        return 2 * (self.cast == 1).sum(axis=0) > (self.cast != NO_VOTE).sum(axis=0)

    @property
    def source(self) -> str:
        """Who voted, in words."""
        if len(self.judges) == 1:
            return self.judges[0]
        return f"majority of {', '.join(self.judges)}"


@dataclass(frozen=True, slots=True, repr=False)
class ConceptConsistency(Tabular):
    """The Concept Consistency Score of every head, 0 to 5, and the studies' summaries of these scores.

    Arrays follow `labels.layers`, which are the model's layer numbers; methods take these numbers.
    """

    labels: Labels
    votes: Votes
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __repr__(self) -> str:
        groups = ", ".join(f"{count} {name}" for name, count in self.groups.items())
        return (
            f"ConceptConsistency({self.labels.run!r}: {counted(self.scores.size, 'head')}, layers "
            f"{as_ranges(self.labels.layers)}; {groups}{of_older(self.older)})"
        )

    @property
    def older(self) -> str | None:
        """The run that the scores were made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else self.labels.older

    @property
    def consistent(self) -> Bool[np.ndarray, "layer head text"]:
        """Whether each of a head's first texts is consistent with its label, by the majority of votes."""
        return self.votes.consistent

    @property
    def scores(self) -> Int[np.ndarray, "layer head"]:
        """CCS: the number of consistent texts of each head."""
        return self.consistent.sum(axis=2).astype(np.int8)

    @property
    def at_k(self) -> list[float]:
        """CCS@K for K = 0 to 5: the share of heads whose score is K."""
        scores = self.scores
        counts = np.bincount(scores.ravel(), minlength=LABELLED_TEXTS + 1)
        return [float(count) for count in counts / scores.size]

    @property
    def groups(self) -> dict[str, int]:
        """Number of heads in each group: high = 5, moderate = 3, low ≤ 1. Scores 2 and 4 are in no group."""
        scores = self.scores.ravel()
        return {
            "high": int((scores == 5).sum()),
            "moderate": int((scores == 3).sum()),
            "low": int((scores <= 1).sum()),
        }

    @property
    def ccr(self) -> float:
        """Concentrated concept ratio: the number of concepts that several high heads share, divided by the number of
        high heads; NaN without high heads."""
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
        """How many heads have each concept, most common first, then by name."""
        counts = Counter(name for row in self.labels.concepts for name in row if name is not None)
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    @property
    def association(self) -> float:
        """Mean over labelled heads of the share of their texts that are consistent; NaN without any. See UNSOURCED."""
        known = self.labels.labelled & (self.votes.texts > 0)
        return float((self.scores[known] / self.votes.texts[known]).mean()) if known.any() else float("nan")

    @property
    def entanglement(self) -> float:
        """Share of labelled heads whose concept another head has too; NaN without labelled heads. See UNSOURCED."""
        counts = self.heads_per_concept.values()
        return sum(count for count in counts if count > 1) / sum(counts) if counts else float("nan")

    def score(self, layer: int, head: int) -> int:
        """The CCS of one head. Raises SettingsError if the head is not in the result."""
        return int(self.scores[place_of(self.labels.layers, self.votes.texts.shape[1], layer, head)])

    def group(self, layer: int, head: int) -> str | None:
        """The group of one head, or None for scores 2 and 4; errors as in `score`."""
        return {0: "low", 1: "low", 3: "moderate", 5: "high"}.get(self.score(layer, head))

    def layer(self, layer: int) -> ConceptConsistency:
        """The result restricted to the heads of one layer. Raises SettingsError if the layer is not in it."""
        place, _ = place_of(self.labels.layers, self.votes.texts.shape[1], layer, 0)
        one = slice(place, place + 1)
        labels, votes = self.labels, self.votes
        consistent = None if labels.consistent is None else labels.consistent[one]
        # Labels that were merged over the whole model stay merged.
        concepts = labels.concepts[one]
        return ConceptConsistency(
            Labels(labels.run, labels.source, (layer,), concepts, consistent),
            Votes(votes.judges, votes.cast[:, one], votes.texts[one]),
        )

    def summary(self) -> dict[str, Any]:
        """The summaries as JSON values; None for one that is not defined."""
        found: dict[str, Any] = {"at_k": self.at_k, "groups": self.groups}
        for name in ("ccr", "association", "entanglement"):
            value = getattr(self, name)
            found[name] = None if np.isnan(value) else value
        return found

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        columns = dict(self.labels._columns())
        heads = zip(columns["layer"], columns["head"], strict=True)
        return {**columns, "score": self.scores.ravel().tolist(), "group": [self.group(*head) for head in heads]}


def concept_consistency(
    store: Store,
    run: str | Labels | None = None,
    overwrite: bool = False,
    on_progress: Listener = ignore,
    *,
    save: bool = False,
) -> ConceptConsistency:
    """Score heads by the votes that their labels include. Source: Madasu, Lal, Howard, arXiv 2503.11103.

    `run` is the name of labels, or what `label_heads` returned; None means the store's only labels. If a run is named,
    or with `save`, the result is saved as `ccs/<run>`; otherwise nothing is written.

    Raises SettingsError if the labels have no votes because a language model gave them: judges vote on those, see
    `judge_heads`. Raises StoreError if the labels are of an older TEXTSPAN run, or if the run has different votes, such
    as those of judges, and `overwrite`, which replaces them, is false. Raises NotSavedError, which holds the result, if
    the store cannot be written.
    """
    labels = run if isinstance(run, Labels) else read_labels(store, run)
    if labels.consistent is None:
        raise SettingsError(
            f"labels of run {labels.run!r} are by {labels.source}, so judges must vote on them; name judges with "
            "--judge, or label by the pool's concepts with headspan label --overwrite"
        )
    texts = text_counts(spans_of(store, labels))
    exists = np.arange(LABELLED_TEXTS) < texts[..., None]
    cast = np.where(exists & labels.labelled[..., None], labels.consistent.astype(np.int8), np.int8(NO_VOTE))
    found = ConceptConsistency(labels, Votes((labels.source,), cast[None], texts))
    saved = save or isinstance(run, str)
    return save_scores(store, found, saved=saved, overwrite=overwrite, on_progress=on_progress)


def text_counts(spans: HeadSpans) -> Int[np.ndarray, "layer head"]:
    """How many of the first five texts each head has."""
    return (spans.indices[..., :LABELLED_TEXTS] >= 0).sum(axis=2).astype(np.int8)


def save_scores(
    store: Store,
    found: ConceptConsistency,
    arrays: dict[str, results.Named] | None = None,
    settings: dict[str, Any] | None = None,
    saved: bool = True,
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> ConceptConsistency:
    """Return `found` with its lineage, if `saved` written as `ccs/<run>`, with further arrays and settings.

    Raises StoreError as `save_result` does.
    """
    votes = found.votes
    return save_result(
        store,
        "ccs",
        found.labels.run,
        found,
        {
            "scores": (found.scores, ("layer", "head")),
            "votes": (votes.cast, ("judge", "layer", "head", "text")),
            "texts": (votes.texts, ("layer", "head")),
            **(arrays or {}),
        },
        {
            "source": votes.source,
            "labels_source": found.labels.source,
            # So that the scores can be read after their labels were replaced.
            "labels": [list(row) for row in found.labels.names],
            "labels_free": found.labels.free,
            "judges": list(votes.judges),
            "layers": list(found.labels.layers),
            **found.summary(),
            "by_layer": {str(layer): found.layer(layer).summary() for layer in found.labels.layers},
            "heads_per_concept": found.heads_per_concept,
            "unsourced": UNSOURCED,
            **(settings or {}),
        },
        {f"labels/{found.labels.run}": found.labels.lineage},
        saved,
        overwrite,
        on_progress,
    )


def read_scores(store: Store, run: str | None = None) -> ConceptConsistency:
    """Read the scores of a run from a store; without `run`, of the only one.

    Raises StoreError if they are missing or damaged, or if there are several runs and none is named.
    """
    run = results.only_run(store, "ccs", run)
    arrays, settings = results.load(store, "ccs", run)
    if "votes" not in arrays:
        raise StoreError(f"{store.path}: ccs run {run!r} was made by an earlier headspan; run headspan ccs --overwrite")
    with results.as_written(store, "ccs", run):
        judges, votes, texts = tuple(map(str, settings["judges"])), arrays["votes"], arrays["texts"]
    lineage = lineage_of(store, "ccs", run)
    return ConceptConsistency(_scored_labels(store, run, settings), Votes(judges, votes, texts), lineage=lineage)


def _scored_labels(store: Store, run: str, settings: Mapping[str, Any]) -> Labels:
    """The labels that were scored: those of the store, or if they were replaced since, those kept with the scores."""
    lineage, source = lineage_of(store, "ccs", run), f"labels/{run}"
    replaced = source in lineage.made_from and lineage.made_from[source] != lineage_of(store, "labels", run).checksum
    if not replaced:
        return read_labels(store, run)
    if "labels" not in settings:
        # Scores of earlier versions do not include their labels.
        refuse_older(store, "ccs", run)
    with results.as_written(store, "ccs", run):
        names = tuple(tuple(None if name is None else str(name) for name in row) for row in settings["labels"])
        source, layers = str(settings["labels_source"]), tuple(map(int, settings["layers"]))
        return Labels(run, source, layers, names, None, bool(settings["labels_free"]))
