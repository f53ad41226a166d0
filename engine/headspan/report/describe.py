"""The numbers of each described head: shares explained beside chance, label and score, magnitude and stability."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headspan.concepts.ccs import ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.report.content import DescribedHead, Scores, Share
from headspan.spans.result import HeadSpans
from headspan.store.reader import Store

# Shares are shown after these numbers of texts, and after all.
_AFTER = (1, 5, 20)


def describe_heads(store: Store, spans: HeadSpans, found: ConceptConsistency | None) -> list[DescribedHead]:
    """Every described head; `found` are the scores of the run, or None if there are none."""
    return list(_describe(store, spans, found))


def summarise(found: ConceptConsistency) -> Scores:
    """The summaries of the scores."""
    return Scores(found.at_k, found.groups, found.ccr)


def _describe(store: Store, spans: HeadSpans, found: ConceptConsistency | None) -> Iterator[DescribedHead]:
    for layer, head in spans.heads():
        texts = spans.texts(layer, head, LABELLED_TEXTS)
        if found is None:
            yield DescribedHead(layer, head, _shares(spans, layer, head), tuple((text, None) for text in texts))
            continue
        place = spans.layers.index(layer), head
        votes = found.consistent[place].tolist()
        yield DescribedHead(
            layer,
            head,
            _shares(spans, layer, head),
            # A head may have fewer texts than there are votes.
            tuple(zip(texts, votes, strict=False)),
            label=found.labels.name(layer, head),
            score=int(found.scores[place]),
            group=found.group(layer, head),
        )


def _shares(spans: HeadSpans, layer: int, head: int) -> tuple[Share, ...]:
    explained = spans.explained[spans.layers.index(layer), head]
    counts = sorted({count for count in (*_AFTER, len(explained)) if count <= len(explained)})
    return tuple(Share(count, float(np.float64(explained[count - 1]))) for count in counts)
