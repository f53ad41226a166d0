"""A store's results about its heads, as answers use them: one run's texts, labels, votes, and a summary of every head.

Whatever a store lacks is left out, and `notices` say which command adds it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import Labels, read_labels
from headspan.concepts.votes import VotesOfRun, votes_of_scores
from headspan.errors import StoreError
from headspan.explore.heads.alike import effective_ranks
from headspan.head_names import head_name
from headspan.report.describe import describe_heads
from headspan.report.described_head import DescribedHead
from headspan.report.facts import few_images_notice, why_no_scores
from headspan.report.shown_run import older_than, scores_of
from headspan.spans.result import HeadSpans
from headspan.spans.saved import read_spans
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.store.results import runs
from headspan.web.answers.stores import HeadSummary

# Texts of a head in its summary, which the page searches.
_TEXTS = 10


@dataclass(frozen=True, eq=False)
class HeadResults:
    """One TEXTSPAN run with the labels, scores and votes that were made from it, as far as a store has them."""

    # None if the store has no run, or if it cannot be read.
    run: str | None
    spans: HeadSpans | None
    found: ConceptConsistency | None
    labels: Labels | None
    votes: VotesOfRun | None
    # What is missing, and what to do: one sentence each.
    notices: list[str]

    def label(self, head: Head) -> str | None:
        """The label of one head; None without one."""
        if self.labels is None or head[0] not in self.labels.layers:
            return None
        return self.labels.name(*head)

    def describes(self, head: Head) -> bool:
        """Whether the run has texts of this head."""
        return self.spans is not None and head[0] in self.spans.layers

    def properties(self) -> dict[str, list[Head]]:
        """The heads of each label, by the label as concepts merge it, in alphabetical order."""
        found: dict[str, list[Head]] = {}
        if self.labels is not None:
            for layer, concepts in zip(self.labels.layers, self.labels.concepts, strict=True):
                for head, concept in enumerate(concepts):
                    if concept is not None:
                        found.setdefault(concept, []).append((layer, head))
        return dict(sorted(found.items()))


def default_run(store: Store) -> str | None:
    """The run that answers use if none is named: the first one with scores, or else the first one; None without any."""
    described = runs(store, "textspan")
    return next((run for run in runs(store, "ccs") if run in described), next(iter(described), None))


def read_head_results(store: Store, run: str | None) -> HeadResults:
    """The results of a run; with None, what there is to say about a store without one."""
    if run is None:
        return HeadResults(None, None, None, _only_labels(store), None, [_no_run(store)])
    try:
        spans = read_spans(store, run)
    except StoreError as error:
        return HeadResults(None, None, None, None, None, [f"{error}."])
    notices = []
    if few := few_images_notice(spans):
        notices.append(few)
    if spans.selection is not None:
        notices.append(f"Texts, shares and labels are over {spans.over}.")
    found, labels, votes = None, None, None
    try:
        found = scores_of(store, run, spans)
        votes = None if found is None else votes_of_scores(store, found, spans)
        labels = found.labels if found is not None else _labels(store, run)
        if found is None:
            notices.append(_sentence(why_no_scores(spans, older_than(store, "ccs", run))))
    except StoreError as error:
        notices.append(f"{error}.")
    return HeadResults(run, spans, found, labels, votes, notices)


def summaries(store: Store, results: HeadResults) -> list[HeadSummary]:
    """Every stored head in order. Numbers are null where the store does not have what they need."""
    heads = stored_heads(store)
    if not store.images:
        return [_summary(head, None, results, (np.nan, np.nan), np.nan) for head in heads]
    selection = None if results.spans is None else results.spans.selection
    magnitudes, ranks = store.magnitudes(images=selection), effective_ranks(store)
    described: dict[Head, DescribedHead] = {}
    if results.spans is not None:
        described = {(each.layer, each.head): each for each in describe_heads(store, results.spans, results.found)}
    return [
        _summary(
            head,
            described.get(head),
            results,
            magnitudes.of(*head),
            float(ranks[store.contents.layer_index(*head), head[1]]),
        )
        for head in heads
    ]


def _summary(
    head: Head, found: DescribedHead | None, results: HeadResults, shares: tuple[float, float], rank: float
) -> HeadSummary:
    chance = None if found is None else found.first.chance
    return HeadSummary(
        layer=head[0],
        head=head[1],
        name=head_name(*head),
        label=results.label(head),
        ccs=None if found is None else found.score,
        variance_share=shares[0],
        squared_length_share=shares[1],
        explained=None if found is None else found.first.explained,
        chance=None if chance is None else chance.mean,
        excess=None if chance is None else chance.excess,
        p=None if chance is None else chance.p,
        # A run over a selection has the rank over the selection.
        effective_rank=rank if found is None or found.effective_rank is None else found.effective_rank,
        texts=results.spans.texts(*head, _TEXTS) if results.spans is not None and results.describes(head) else [],
    )


def _labels(store: Store, run: str) -> Labels | None:
    """The labels of a run without scores; None if there are none, or if they are of an older run of that name."""
    if run not in runs(store, "labels") or older_than(store, "labels", run):
        return None
    return read_labels(store, run)


def _only_labels(store: Store) -> Labels | None:
    """The labels of a store whose texts were removed."""
    with suppress(StoreError):
        return read_labels(store)
    return None


def _no_run(store: Store) -> str:
    return (
        f"The store has no text spans, so its heads have no texts and no labels: run headspan textspan {store.path}, "
        "then headspan label and headspan ccs."
    )


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
