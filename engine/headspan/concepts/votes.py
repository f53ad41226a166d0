"""Every vote of a run on every text, with the raw replies of the language models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.concepts.answers import Record, read_records, texts_of
from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import NO_VOTE, ConceptConsistency
from headspan.errors import counted
from headspan.frames import Tabular
from headspan.spans.result import HeadSpans, place_of
from headspan.spans.saved import read_spans
from headspan.store.lineage import refuse_older
from headspan.store.reader import Store


@dataclass(frozen=True, slots=True)
class JudgesVote:
    """One judge's vote on one text: True if it fits the label, None without a usable answer."""

    judge: str
    fits: bool | None
    # What a language model replied, the last reply last; empty for votes of a pool.
    replies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class VotesOnText:
    """The votes on one text of a head, and whether it is consistent with the label by their majority."""

    text: str
    consistent: bool
    votes: tuple[JudgesVote, ...]


@dataclass(frozen=True, slots=True)
class VotesOnHead:
    """The votes on the first texts of one head, its label and its score (CCS)."""

    layer: int
    head: int
    label: str | None
    # What a language model replied when it was asked for the label.
    label_replies: tuple[str, ...]
    score: int
    texts: tuple[VotesOnText, ...]
    # The probability of a score at least as high by chance; None if it is not known.
    p: float | None = None


@dataclass(frozen=True, slots=True, repr=False)
class VotesOfRun(Tabular):
    """All votes of a CCS run, head by head."""

    run: str
    # Who gave the labels and the votes, in words.
    labels_source: str
    votes_source: str
    layers: tuple[int, ...]
    heads: tuple[VotesOnHead, ...]

    def __repr__(self) -> str:
        votes = sum(vote.fits is not None for head in self.heads for text in head.texts for vote in text.votes)
        return (
            f"VotesOfRun({self.run!r}: {counted(votes, 'vote')} on texts of {counted(len(self.heads), 'head')} by "
            f"{self.votes_source})"
        )

    def head(self, layer: int, head: int) -> VotesOnHead:
        """The votes on one head. Raises SettingsError if the head is not in the result."""
        heads = len(self.heads) // len(self.layers)
        place, head = place_of(self.layers, heads, layer, head)
        return self.heads[place * heads + head]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [
            {
                "layer": head.layer,
                "head": head.head,
                "label": head.label,
                "number": number,
                "text": text.text,
                "consistent": text.consistent,
                "judge": vote.judge,
                "fits": vote.fits,
            }
            for head in self.heads
            for number, text in enumerate(head.texts, start=1)
            for vote in text.votes
        ]
        return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def read_votes(store: Store, run: str | None = None) -> VotesOfRun:
    """Collect the labels, texts, votes and raw replies of a CCS run; without `run`, of the only one.

    Raises StoreError if the run or what it was made from is missing or damaged, or was replaced since.
    """
    found = read_scores(store, run)
    return votes_of_scores(store, found, read_spans(store, found.labels.run))


def votes_of_scores(store: Store, found: ConceptConsistency, spans: HeadSpans) -> VotesOfRun:
    """The same of scores and text spans that are read already. Raises as `read_votes` does."""
    labels, votes = found.labels, found.votes
    # The texts of a newer run are not those that were voted on.
    refuse_older(store, "ccs", labels.run)
    labelled = {(one["layer"], one["head"]): one for one in read_records(store, "labels", labels.run)}
    voted = {
        (one["layer"], one["head"], one["text"], one["judge"]): one for one in read_records(store, "ccs", labels.run)
    }
    heads = []
    for index, layer in enumerate(labels.layers):
        for head, label in enumerate(labels.names[index]):
            consistent, cast = found.consistent[index, head].tolist(), votes.cast[:, index, head].T.tolist()
            texts = []
            for number, text in enumerate(spans.texts(layer, head, len(consistent)), start=1):
                by_judge = tuple(
                    JudgesVote(
                        judge,
                        None if vote == NO_VOTE else bool(vote),
                        _replies(voted.get((layer, head, number, judge))),
                    )
                    for judge, vote in zip(votes.judges, cast[number - 1], strict=True)
                )
                texts.append(VotesOnText(text, consistent[number - 1], by_judge))
            asked = _replies(labelled.get((layer, head)))
            p = None if found.chance is None else float(found.chance.p[index, head])
            heads.append(VotesOnHead(layer, head, label, asked, sum(consistent), tuple(texts), p))
    return VotesOfRun(labels.run, labels.source, votes.source, labels.layers, tuple(heads))


def _replies(record: Record | None) -> tuple[str, ...]:
    return () if record is None else texts_of(record)
