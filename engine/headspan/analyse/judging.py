"""Language models as judges: each is asked, for one text and one label, whether they belong together.

Source: Madasu, Lal, Howard, arXiv 2503.11103. The prompt is headspan's own wording of the study's: rate the
association of the label to the text, 1 if associated and 0 if not. Every vote and every raw answer is kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from headspan.analyse import results
from headspan.analyse.answers import Record, as_array, endpoints, record, records_of, served_as
from headspan.analyse.ccs import NO_VOTE, ConceptConsistency, Votes, read_scores, save_scores, text_counts
from headspan.analyse.labels import LABELLED_TEXTS, Labels, check_texts, first_texts, read_labels
from headspan.analyse.spans import HeadSpans, read_spans
from headspan.errors import LanguageModelError, SettingsError, StoreError
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS, Question
from headspan.llm.forms import Form, NotAsAskedError, bare, object_of, read_field
from headspan.records import Listener, ignore
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


def all_vote_questions(
    store: Store, judges: Sequence[str], run: str | None = None, answer_tokens: int = ANSWER_TOKENS
) -> dict[str, dict[Place, Question]]:
    """What `judge_heads` asks each judge. SettingsError where a judge is named twice."""
    twice = sorted({judge for judge in judges if judges.count(judge) > 1})
    if twice:
        raise SettingsError(f"--judge {twice[0]} is given twice; a judge has one vote, so name each once")
    labels = read_labels(store, run)
    spans = read_spans(store, labels.run)
    check_texts(spans)
    if spans.layers != labels.layers:
        raise StoreError(f"{store.path}: labels {labels.run!r} are of another textspan run; run headspan label again")
    return {judge: vote_questions(spans, labels, judge, answer_tokens) for judge in judges}


def judge_heads(
    store: Store,
    asker: Asker,
    judges: Sequence[str],
    run: str | None = None,
    add: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    listen: Listener = ignore,
) -> ConceptConsistency:
    """Let every judge vote on every labelled head's texts; scores, votes and raw answers are kept as `ccs/<run>`.

    With `add`, the votes that the run has from other judges stay. A judge's answer that is none is a vote
    that is missing, and is asked for again the next time. Raises LanguageModelError where a judge gives no
    vote at all, and what `Asker.ask` raises; answers that came before are kept on disk.
    """
    asked = all_vote_questions(store, judges, run, answer_tokens)
    labels = read_labels(store, run)
    spans = read_spans(store, labels.run)
    shape = (len(labels.layers), spans.indices.shape[1], LABELLED_TEXTS)
    votes, records = _stored(store, labels.run, judges) if add else ({}, [])
    answers = iter(asker.ask([question for questions in asked.values() for question in questions.values()], listen))
    for judge, questions in asked.items():
        cast = np.full(shape, NO_VOTE, np.int8)
        complaint = None
        for place, question in questions.items():
            answer = next(answers)
            if answer.value is None:
                complaint = answer.complaint
            else:
                cast[place] = answer.value
            where = {"judge": judge, "layer": labels.layers[place.kept], "head": place.head, "text": place.text + 1}
            records.append(record(question, answer, **where))
        if questions and (cast == NO_VOTE).all():
            raise LanguageModelError(
                f"{judge} votes on none of {len(questions)} texts: its answer {complaint}; name another --judge, or "
                "allow longer answers with --answer-tokens"
            )
        votes[judge] = cast
    found = ConceptConsistency(labels, Votes(tuple(votes), np.stack(list(votes.values())), text_counts(spans)))
    settings = {"judged_by": [_judge(judge, votes[judge], found, records) for judge in votes]}
    save_scores(store, found, {"answers": as_array(records)}, settings)
    return found


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


def _stored(store: Store, run: str, judges: Sequence[str]) -> tuple[dict[str, np.ndarray], list[Record]]:
    """Votes and records of the judges that are not asked now."""
    if run not in results.runs(store, "ccs"):
        return {}, []
    votes = read_scores(store, run).votes
    arrays, _ = results.load(store, "ccs", run)
    records = records_of(arrays, f"{store.path}/ccs/{run}")
    return (
        {judge: cast for judge, cast in zip(votes.judges, votes.cast, strict=True) if judge not in judges},
        [record for record in records if record["judge"] not in judges],
    )
