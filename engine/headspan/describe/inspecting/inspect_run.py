"""Inspect descriptions: judges vote on what each teaches about its class, and every vote and raw answer is stored.

Source of the method: Esfandiarpoor, Menghini, Bach, arXiv 2403.16442. Several judges, their majority and their
agreement are headspan's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from headspan.concepts.answers import Record, record
from headspan.describe.descriptions.result import UNDECIDED, Descriptions, Inspection
from headspan.describe.descriptions.saved import KIND, read_descriptions, save_descriptions
from headspan.describe.inspecting.ballot import Ballot, Votes, open_ballot
from headspan.describe.inspecting.majority import common_attributes, majority
from headspan.describe.inspecting.verdict import NO_VERDICT, Judge
from headspan.describe.inspecting.wording import verdict_of
from headspan.errors import LanguageModelError, SettingsError, counted
from headspan.events import Listener, ignore
from headspan.llm.asking import Asker
from headspan.llm.cache import ANSWER_TOKENS
from headspan.store import results
from headspan.store.lineage import checksum_of
from headspan.store.reader import Store


def inspect(
    store: Store,
    run: str | Descriptions | None = None,
    *,
    models: Sequence[str] = (),
    asker: Asker | None = None,
    judges: Mapping[str, Judge] | None = None,
    people: Mapping[str, Votes] | None = None,
    add: bool = False,
    overwrite: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
    on_progress: Listener = ignore,
    save: bool = False,
) -> Descriptions:
    """Let judges say what every description teaches about its class. Returns the descriptions with their inspection.

    If a run is named, or with `save`, the inspection is saved with the run; otherwise nothing is written. Saved votes
    of the same language models are reused. If a model gives no usable answer about a description, its vote is missing,
    and the next call asks again.

    Args:
        store: The store.
        run: The name of descriptions, or what `write` returned; None means the store's only run.
        models: Names of language models that judge, through `asker`.
        asker: The endpoint, cache and budget of the language models.
        judges: Functions that judge, by the name of each; `world.annotated_judge` makes one for the image world.
        people: Votes of people by the name of each, as `read_verdict_sheet` returns them.
        add: Keep saved votes of other judges.
        overwrite: Replace all saved votes, and ask for every vote.
        answer_tokens: The most tokens of an answer.
        on_progress: A listener.
        save: Save what was given as `Descriptions`.

    Raises SettingsError as `open_ballot` does; LanguageModelError if a model gives no usable vote at all; the errors of
    `Asker.ask`; and NotSavedError, which holds the result, if the store cannot be written. Answers received before an
    error stay in the cache.
    """
    descriptions = run if isinstance(run, Descriptions) else read_descriptions(store, run)
    judges, people = judges or {}, people or {}
    ballot = open_ballot(descriptions, models, [*judges, *people], add, overwrite, answer_tokens)
    asked, answers = _ask(ballot, asker, on_progress)
    called = {
        judge: {each: call(each.text, each.class_name) for each in dict.fromkeys(ballot.described)}
        for judge, call in judges.items()
    }
    inspection = _counted(ballot, {**ballot.others, **asked, **called, **people}, answers)
    found = replace(descriptions, inspection=inspection)
    if not (save or isinstance(run, str)):
        return found
    # The saved inspection is part of this one, or the caller allowed to replace it.
    replaces = overwrite or not isinstance(run, Descriptions) or _is_saved(store, run)
    return save_descriptions(store, found, overwrite=replaces, on_progress=on_progress)


def missing_verdicts(inspection: Inspection) -> dict[str, int]:
    """For each judge, the number of descriptions without its vote."""
    return {
        judge: int((cast == UNDECIDED).sum()) for judge, cast in zip(inspection.judges, inspection.votes, strict=True)
    }


def _is_saved(store: Store, descriptions: Descriptions) -> bool:
    """Whether these very descriptions are a run of the store."""
    known, run = descriptions.lineage, descriptions.run
    return (
        known is not None
        and run in results.runs(store, KIND)
        and checksum_of(store.contents.storage, KIND, run) == known.checksum
    )


def _ask(ballot: Ballot, asker: Asker | None, on_progress: Listener) -> tuple[dict[str, Votes], tuple[Record, ...]]:
    """The votes of the language models, and the records of their answers and of those of other judges."""
    if ballot.questions and asker is None:
        raise SettingsError(f"{', '.join(ballot.questions)}: language models are asked through asker=Asker(…); give it")
    answers = iter([] if asker is None else asker.ask(ballot.open, on_progress))
    votes: dict[str, Votes] = {}
    records = [*ballot.other_answers]
    for judge, questions in ballot.questions.items():
        cast, complaint = {}, None
        for described, question in questions.items():
            found = ballot.answered[judge].get(described)
            if found is None:
                where = {"judge": judge, "class": described.class_name, "text": described.text}
                found = record(question, next(answers), **where)
            records.append(found)
            verdict = verdict_of(found["value"])
            if verdict is None:
                complaint = found["complaint"]
            else:
                cast[described] = verdict
        if questions and not cast:
            raise LanguageModelError(
                f"{judge} gave no usable verdict on {counted(len(questions), 'description')}: its answer {complaint}; "
                "name another --judge, or allow longer answers with --answer-tokens"
            )
        votes[judge] = cast
    return votes, tuple(records)


def _counted(ballot: Ballot, cast: Mapping[str, Votes], answers: tuple[Record, ...]) -> Inspection:
    """The inspection by all these votes."""
    given = {judge: [votes.get(each, NO_VERDICT) for each in ballot.described] for judge, votes in cast.items()}
    votes = np.array([[each.number for each in own] for own in given.values()], np.int8)
    named = tuple(tuple(each.attribute for each in own) for own in given.values())
    verdicts = majority(votes)
    return Inspection(tuple(given), votes, verdicts, common_attributes(votes, named, verdicts), named, answers)
