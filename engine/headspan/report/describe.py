"""The numbers of each described head: shares explained beside chance, label and score, magnitude and stability."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from headspan.concepts.consistency import ConceptConsistency
from headspan.concepts.labels import LABELLED_TEXTS
from headspan.report.described_head import LOW_MAGNITUDE, DescribedHead, Scores, Share
from headspan.spans.result import SHOWN_COUNTS, HeadSpans
from headspan.store.reader import Store


def describe_heads(store: Store, spans: HeadSpans, found: ConceptConsistency | None) -> list[DescribedHead]:
    """Every described head; `found` are the scores of the run, or None if there are none."""
    magnitudes = store.magnitudes(images=spans.selection)
    # The average of all stored heads, whichever of them are described.
    low = LOW_MAGNITUDE * float(np.mean(magnitudes.variance_share))
    heads = []
    for layer, head in spans.heads():
        variance, length = magnitudes.of(layer, head)
        plain = DescribedHead(
            layer,
            head,
            _shares(spans, layer, head),
            tuple((text, None) for text in spans.texts(layer, head, LABELLED_TEXTS)),
            variance_share=variance,
            squared_length_share=length,
            low_magnitude=variance < low,
            effective_rank=_of(spans, spans.effective_rank, layer, head),
            stability=_of(spans, spans.stability, layer, head),
        )
        heads.append(plain if found is None else _scored(plain, found))
    return heads


def summarise(found: ConceptConsistency) -> Scores:
    """The summaries of the scores, beside what chance gives."""
    scores, chance = Scores(found.at_k, found.groups, found.ccr), found.chance
    if chance is None:
        return scores
    return replace(
        scores,
        expected_at_k=chance.expected_at_k,
        expected_groups=chance.expected,
        expected_ccr=chance.expected_ccr(found.groups["high"]),
        expected_labelled=chance.expected_beating(),
        rotated=chance.rotated is not None,
    )


def _scored(plain: DescribedHead, found: ConceptConsistency) -> DescribedHead:
    """The head with its label and score."""
    place = found.labels.layers.index(plain.layer), plain.head
    votes = found.consistent[place].tolist()
    scored = replace(
        plain,
        # A head may have fewer texts than there are votes.
        texts=tuple((text, vote) for (text, _), vote in zip(plain.texts, votes, strict=False)),
        label=found.labels.name(plain.layer, plain.head),
        score=int(found.scores[place]),
        group=found.group(plain.layer, plain.head),
    )
    if found.chance is None:
        return scored
    p, _ = found.chance.of(plain.layer, plain.head)
    return replace(scored, score_p=p, labelled=found.chance.beats(plain.layer, plain.head))


def _shares(spans: HeadSpans, layer: int, head: int) -> tuple[Share, ...]:
    most = spans.explained.shape[2]
    return tuple(
        Share(
            count,
            spans.explained_by(layer, head, count),
            None if spans.null is None else spans.chance(layer, head, count),
        )
        for count in sorted({count for count in (*SHOWN_COUNTS, most) if count <= most})
    )


def _of(spans: HeadSpans, values: Float[np.ndarray, "layer head"] | None, layer: int, head: int) -> float | None:
    """One head's value; None if it was not recorded or is not defined."""
    if values is None:
        return None
    value = float(values[spans.layers.index(layer), head])
    return None if math.isnan(value) else value
