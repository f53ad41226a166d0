"""Language models as judges: each votes on whether a text is associated with a label, pair by pair.

Source: Madasu, Lal, Howard, arXiv 2503.11103. The wording of the prompt is headspan's own: rate the association of
the label to the text, 1 if associated and 0 if not. Every vote and every raw answer is stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headspan.concepts.answers import Record, as_array, endpoints, read_records, record, served_as
from headspan.concepts.ccs import read_scores, save_scores, text_counts
from headspan.concepts.consistency import NO_VOTE, ConceptConsistency, Votes
from headspan.concepts.labels import LABELLED_TEXTS, Labels, check_texts, read_labels, spans_of
from headspan.errors import LanguageModelError, SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, bare, object_of, read_field
from headspan.spans.result import HeadSpans
from headspan.store import results
from headspan.store.lineage import lineage_of, refuse_older
from headspan.store.reader import Store


class Place(NamedTuple):
    """One text of a head: layer, head, and the number of the text, from 1."""

    layer: int
    head: int
    number: int


def _read(answer: str) -> int:
    # A model without structured output may reply with the digit alone.
    value = bare(answer) if bare(answer) in ("0", "1") else read_field(answer, "associated")
    if isinstance(value, bool) or value not in (0, 1, "0", "1"):
        raise NotAsAskedError(f"rates the association {json.dumps(value)[:40]} instead of 1 or 0")
    return int(value)


VOTE = Form("vote", object_of(associated={"type": "integer", "enum": [0, 1]}), _read)


def vote_prompt(label: str, text: str) -> str:
    """The prompt that asks a judge about one text and one label."""
    return (
        "Rate the association of the label to the text: 1 if the label is associated with the text, 0 if it is not. "
        'Answer with the JSON object {"associated": 1} or {"associated": 0} and nothing else.\n\n'
        f"Label: {json.dumps(label, ensure_ascii=False)}\nText: {json.dumps(text, ensure_ascii=False)}\nAnswer:"
    )


def vote_questions(
    spans: HeadSpans, labels: Labels, judge: str, answer_tokens: int = ANSWER_TOKENS
) -> dict[Place, Question]:
    """The question for every text of every labelled head."""
    return {
        Place(layer, head, number): Question(judge, vote_prompt(label, text), VOTE, answer_tokens=answer_tokens)
        for layer, names in zip(labels.layers, labels.names, strict=True)
        for head, label in enumerate(names)
        if label is not None
        for number, text in enumerate(spans.texts(layer, head, LABELLED_TEXTS), start=1)
    }


@dataclass(frozen=True, slots=True)
class Ballot:
    """The questions to the judges of a run, and the votes that it has already."""

    labels: Labels
    spans: HeadSpans
    # For each judge, every question, and the stored answers to them.
    questions: dict[str, dict[Place, Question]]
    answered: dict[str, dict[Place, Record]]
    # Votes and answers of other judges that are kept.
    others: dict[str, np.ndarray]
    other_records: list[Record]
    # Whether the run has votes of exactly these judges, and is complete or has results made from it.
    unchanged: bool

    @property
    def open(self) -> dict[str, dict[Place, Question]]:
        """The questions that `judge_heads` will ask each judge."""
        if self.unchanged:
            return {}
        return {
            judge: {place: each for place, each in asked.items() if place not in self.answered[judge]}
            for judge, asked in self.questions.items()
        }


def open_ballot(
    store: Store,
    judges: Sequence[str],
    run: str | Labels | None = None,
    add: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    overwrite: bool = False,
    saved: bool = True,
) -> Ballot:
    """Prepare the questions of `judge_heads` and find the stored votes; nothing is asked or written.

    If the result is not to be `saved`, stored votes are used only to `add` to them. Raises SettingsError if a judge is
    named twice, and StoreError if the run has votes of other judges or on older labels, unless votes are kept (`add`)
    or replaced (`overwrite`).
    """
    twice = sorted({judge for judge in judges if judges.count(judge) > 1})
    if twice:
        raise SettingsError(f"--judge {twice[0]} is given twice; each judge has one vote, so name it once")
    labels = run if isinstance(run, Labels) else read_labels(store, run)
    spans = spans_of(store, labels)
    check_texts(spans)
    if spans.layers != labels.layers:
        raise StoreError(
            f"{store.path}: labels/{labels.run} were made from another textspan run; run headspan label "
            f"--run {labels.run} --overwrite"
        )
    questions = {judge: vote_questions(spans, labels, judge, answer_tokens) for judge in judges}
    answered: dict[str, dict[Place, Record]] = {judge: {} for judge in judges}
    stored = results.sound(store, "ccs", labels.run) or (add and labels.run in results.runs(store, "ccs"))
    if not stored or not (saved or add):
        return Ballot(labels, spans, questions, answered, {}, [], unchanged=False)
    older = lineage_of(store, "ccs", labels.run).older
    if add and not overwrite:
        refuse_older(store, "ccs", labels.run)
    votes = read_scores(store, labels.run).votes
    records = read_records(store, "ccs", labels.run)
    others = {judge: cast for judge, cast in zip(votes.judges, votes.cast, strict=True) if judge not in judges}
    if others and not add and not overwrite:
        why = f"ccs run {labels.run!r} has votes by {', '.join(others)}; keep them with --add"
        raise results.refusal(store, "ccs", labels.run, why)
    for judge in () if overwrite else judges:
        known = {Place(one["layer"], one["head"], one["text"]): one for one in records if one["judge"] == judge}
        answered[judge] = {
            place: one
            for place, one in known.items()
            if place in questions[judge]
            and one["prompt"] == questions[judge][place].prompt
            and one["value"] is not None
        }
        if older is not None and known.keys() != answered[judge].keys():
            raise results.refusal(store, "ccs", labels.run, f"ccs run {labels.run!r} has votes on an older {older}")
    same_judges = set(judges) | set(others) == set(votes.judges)
    complete = all(answered[judge].keys() == questions[judge].keys() for judge in judges)
    dependents = results.made_from(store, "ccs", labels.run)
    if dependents and not same_judges and not overwrite:
        raise results.refusal(store, "ccs", labels.run, f"ccs run {labels.run!r} has votes by other judges")
    return Ballot(
        labels,
        spans,
        questions,
        answered,
        others if add else {},
        [one for one in records if one["judge"] in others] if add else [],
        unchanged=same_judges and not overwrite and older is None and (complete or bool(dependents)),
    )


def judge_heads(
    store: Store,
    asker: Asker,
    judges: Sequence[str],
    run: str | Labels | None = None,
    add: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Listener = ignore,
    overwrite: bool = False,
    *,
    save: bool = False,
) -> ConceptConsistency:
    """Let every judge vote on the texts of every labelled head. Source: Madasu, Lal, Howard, arXiv 2503.11103.

    `judges` are names of language models. `run` is the name of labels, or what `label_heads` or `label_by_model`
    returned; None means the store's only labels. If a run is named, or with `save`, scores, votes and answers are saved
    as `ccs/<run>`; otherwise nothing is written.

    Saved votes of these judges are reused. If a judge gives no usable answer, its vote is missing, and the next call
    asks again. `add` keeps the saved votes of other judges; `overwrite` replaces all saved votes and asks for every
    vote. Raises NotSavedError, which holds the result, if the store cannot be written.

    Raises SettingsError if a judge is named twice; StoreError if the run has votes of other judges and neither `add`
    nor `overwrite` is given; LanguageModelError if a judge gives no usable vote at all; and the errors of `Asker.ask`.
    Answers received before an error stay in the cache.
    """
    saved = save or isinstance(run, str)
    ballot = open_ballot(store, judges, run, add, answer_tokens, overwrite, saved)
    labels = ballot.labels
    if ballot.unchanged:
        on_progress(Progress(NOTE, 1, 1, f"ccs/{labels.run} already has the votes of these judges; it is unchanged"))
        return read_scores(store, labels.run)
    shape = (len(labels.layers), ballot.spans.indices.shape[1], LABELLED_TEXTS)
    votes, records = dict(ballot.others), list(ballot.other_records)
    asked = [question for questions in ballot.open.values() for question in questions.values()]
    answers = iter(asker.ask(asked, on_progress))
    for judge, questions in ballot.questions.items():
        cast = np.full(shape, NO_VOTE, np.int8)
        complaint = None
        for place, question in questions.items():
            found = ballot.answered[judge].get(place)
            if found is None:
                where = {"judge": judge, "layer": place.layer, "head": place.head, "text": place.number}
                found = record(question, next(answers), **where)
            if found["value"] is None:
                complaint = found["complaint"]
            else:
                cast[labels.layers.index(place.layer), place.head, place.number - 1] = found["value"]
            records.append(found)
        if questions and (cast == NO_VOTE).all():
            raise LanguageModelError(
                f"{judge} gave no usable vote on {counted(len(questions), 'text')}: its answer {complaint}; name "
                "another --judge, or allow longer answers with --answer-tokens"
            )
        votes[judge] = cast
    scores = ConceptConsistency(labels, Votes(tuple(votes), np.stack(list(votes.values())), text_counts(ballot.spans)))
    settings = {"judged_by": [_judge(judge, votes[judge], scores, records) for judge in votes]}
    # Existing scores are part of these, or the caller allowed to replace them.
    answers_of = {"answers": as_array(records)}
    return save_scores(store, scores, answers_of, settings, saved, overwrite=True, on_progress=on_progress)


def missing_votes(found: ConceptConsistency) -> dict[str, int]:
    """For each judge, the number of texts of labelled heads without a vote of it."""
    wanted = int(found.votes.texts[found.labels.labelled].sum())
    return {
        judge: wanted - int((cast != NO_VOTE).sum())
        for judge, cast in zip(found.votes.judges, found.votes.cast, strict=True)
    }


def _judge(judge: str, cast: np.ndarray, found: ConceptConsistency, records: Sequence[Record]) -> dict[str, object]:
    own = [record for record in records if record["judge"] == judge]
    return {
        "name": judge,
        "endpoints": endpoints(own),
        "served_as": served_as(own),
        "votes": int((cast != NO_VOTE).sum()),
        "missing": missing_votes(found)[judge],
    }
