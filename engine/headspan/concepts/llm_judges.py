"""Language models as judges: each is asked, for one text and one label, whether they belong together.

Source: Madasu, Lal, Howard, arXiv 2503.11103. The prompt is headspan's own wording of the study's: rate the
association of the label to the text, 1 if associated and 0 if not. Every vote and every raw answer is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from headspan.concepts.answers import Record, as_array, endpoints, read_records, record, served_as
from headspan.concepts.ccs import NO_VOTE, ConceptConsistency, Votes, read_scores, save_scores, text_counts
from headspan.concepts.labels import LABELLED_TEXTS, Labels, check_texts, first_texts, read_labels
from headspan.errors import LanguageModelError, SettingsError, StoreError, counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, bare, object_of, read_field
from headspan.spans.result import HeadSpans, read_spans
from headspan.store import results
from headspan.store.reader import Store


class Place(NamedTuple):
    """A head's text: the layer's place, the head, and the text's place among the first five."""

    kept: int
    head: int
    text: int


def _read(answer: str) -> int:
    # A model without structured output may give the digit alone.
    value = bare(answer) if bare(answer) in ("0", "1") else read_field(answer, "associated")
    if isinstance(value, bool) or value not in (0, 1, "0", "1"):
        raise NotAsAskedError(f"rates the association {json.dumps(value)[:40]} where 1 or 0 is asked for")
    return int(value)


VOTE = Form("vote", object_of(associated={"type": "integer", "enum": [0, 1]}), _read)


def vote_prompt(label: str, text: str) -> str:
    """What a judge is asked about one text and one label."""
    return (
        "Rate the association of the label to the text: 1 if the label is associated with the text, 0 if it is not. "
        'Answer with the JSON object {"associated": 1} or {"associated": 0} and nothing else.\n\n'
        f"Label: {json.dumps(label, ensure_ascii=False)}\nText: {json.dumps(text, ensure_ascii=False)}\nAnswer:"
    )


def vote_questions(
    spans: HeadSpans, labels: Labels, judge: str, answer_tokens: int = ANSWER_TOKENS
) -> dict[Place, Question]:
    """A question for every text of every labelled head."""
    questions = {}
    for kept, names in enumerate(labels.names):
        for head, label in enumerate(names):
            for number, place in enumerate(first_texts(spans, kept, head) if label is not None else ()):
                prompt = vote_prompt(str(label), spans.pool.texts[place])
                questions[Place(kept, head, number)] = Question(judge, prompt, VOTE, answer_tokens=answer_tokens)
    return questions


@dataclass(frozen=True, slots=True)
class Ballot:
    """What judges are to vote on in a run, and what of it is there already."""

    labels: Labels
    spans: HeadSpans
    # Every question to each judge; and the answers that the run holds to them.
    questions: dict[str, dict[Place, Question]]
    answered: dict[str, dict[Place, Record]]
    # The votes of other judges, which stay, and their answers.
    others: dict[str, np.ndarray]
    other_records: list[Record]
    # Whether the run has votes of exactly these judges, and must stay as it is since something was made from it.
    unchanged: bool

    @property
    def open(self) -> dict[str, dict[Place, Question]]:
        """The questions that `judge_heads` asks each judge."""
        if self.unchanged:
            return {}
        return {
            judge: {place: each for place, each in asked.items() if place not in self.answered[judge]}
            for judge, asked in self.questions.items()
        }


def open_ballot(
    store: Store,
    judges: Sequence[str],
    run: str | None = None,
    add: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    overwrite: bool = False,
) -> Ballot:
    """What `judge_heads` asks, and what it finds.

    SettingsError where a judge is named twice. StoreError where the run has votes of other judges, unless these are to
    stay (`add`) or to be deleted (`overwrite`).
    """
    twice = sorted({judge for judge in judges if judges.count(judge) > 1})
    if twice:
        raise SettingsError(f"--judge {twice[0]} is given twice; a judge has one vote, so name each once")
    labels = read_labels(store, run)
    spans = read_spans(store, labels.run)
    check_texts(spans)
    if spans.layers != labels.layers:
        raise StoreError(f"{store.path}: labels {labels.run!r} are of another textspan run; run headspan label again")
    questions = {judge: vote_questions(spans, labels, judge, answer_tokens) for judge in judges}
    answered: dict[str, dict[Place, Record]] = {judge: {} for judge in judges}
    if not (results.sound(store, "ccs", labels.run) or (add and labels.run in results.runs(store, "ccs"))):
        return Ballot(labels, spans, questions, answered, {}, [], unchanged=False)
    votes = read_scores(store, labels.run).votes
    records = read_records(store, "ccs", labels.run)
    others = {judge: cast for judge, cast in zip(votes.judges, votes.cast, strict=True) if judge not in judges}
    if others and not add and not overwrite:
        why = f"ccs run {labels.run!r} has votes by {', '.join(others)}, which stay where judges are added with --add"
        raise results.refusal(store, "ccs", labels.run, why)
    for judge in () if overwrite else judges:
        known = {
            Place(labels.layers.index(one["layer"]), one["head"], one["text"] - 1): one
            for one in records
            if one["judge"] == judge
        }
        answered[judge] = {
            place: one
            for place, one in known.items()
            if place in questions[judge]
            and one["prompt"] == questions[judge][place].prompt
            and one["value"] is not None
        }
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
        unchanged=same_judges and not overwrite and (complete or bool(dependents)),
    )


def judge_heads(
    store: Store,
    asker: Asker,
    judges: Sequence[str],
    run: str | None = None,
    add: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Listener = ignore,
    overwrite: bool = False,
) -> ConceptConsistency:
    """Let every judge vote on every labelled head's texts; scores, votes and raw answers are kept as `ccs/<run>`.

    Votes that the run has from these judges are not asked for again. With `add`, the votes that it has from other
    judges stay; without, they are refused with a StoreError unless `overwrite`, which asks for every vote and deletes
    what is there. A judge's answer that is none is a vote that is missing, and is asked for again the next time. Raises
    LanguageModelError where a judge gives no vote at all, and what `Asker.ask` raises; answers that came before are
    kept on disk.
    """
    ballot = open_ballot(store, judges, run, add, answer_tokens, overwrite)
    labels = ballot.labels
    if ballot.unchanged:
        on_progress(Progress(NOTE, 1, 1, f"ccs/{labels.run} has the votes of these judges; it was left as it is"))
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
                where = {"judge": judge, "layer": labels.layers[place.kept], "head": place.head, "text": place.text + 1}
                found = record(question, next(answers), **where)
            if found["value"] is None:
                complaint = found["complaint"]
            else:
                cast[place] = found["value"]
            records.append(found)
        if questions and (cast == NO_VOTE).all():
            raise LanguageModelError(
                f"{judge} votes on none of {counted(len(questions), 'text')}: its answer {complaint}; name "
                f"another --judge, or "
                "allow longer answers with --answer-tokens"
            )
        votes[judge] = cast
    scores = ConceptConsistency(labels, Votes(tuple(votes), np.stack(list(votes.values())), text_counts(ballot.spans)))
    settings = {"judged_by": [_judge(judge, votes[judge], scores, records) for judge in votes]}
    # What is there is part of this, or may be overwritten.
    save_scores(store, scores, {"answers": as_array(records)}, settings, overwrite=True, on_progress=on_progress)
    return scores


def missing_votes(found: ConceptConsistency) -> dict[str, int]:
    """For each judge, the texts of labelled heads that it has no vote on."""
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
