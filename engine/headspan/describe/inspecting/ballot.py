"""The questions to the judges of descriptions, and the votes that a run has already.

Equal texts of one class are judged once, however many questions they answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headspan.concepts.answers import Record
from headspan.describe.descriptions.result import Descriptions, Inspection
from headspan.describe.inspecting.verdict import Described, Verdict
from headspan.describe.inspecting.wording import verdict_questions
from headspan.errors import SettingsError
from headspan.llm.cache import ANSWER_TOKENS, Question

Votes = Mapping[Described, Verdict]


@dataclass(frozen=True, slots=True)
class Ballot:
    """What language models are asked about descriptions, and the stored votes that are used."""

    # The class and the text of every description; equal ones repeat.
    described: tuple[Described, ...]
    # For each language model, every question, and the stored answers to them.
    questions: Mapping[str, Mapping[Described, Question]]
    answered: Mapping[str, Mapping[Described, Record]]
    # Votes and answers of other judges that are kept.
    others: Mapping[str, Votes]
    other_answers: tuple[Record, ...]

    @property
    def open(self) -> list[Question]:
        """The questions that `inspect` will ask, judge by judge."""
        return [
            question
            for judge, asked in self.questions.items()
            for described, question in asked.items()
            if described not in self.answered[judge]
        ]


def open_ballot(
    descriptions: Descriptions,
    models: Sequence[str] = (),
    judges: Sequence[str] = (),
    add: bool = False,
    overwrite: bool = False,
    answer_tokens: int = ANSWER_TOKENS,
) -> Ballot:
    """Prepare the questions of `inspect` and find the stored votes; nothing is asked or written.

    `models` are names of language models, and `judges` those of others. Raises SettingsError if there is no judge, if
    one is named twice, or if the descriptions have votes of judges who are not named, unless these are kept (`add`) or
    replaced (`overwrite`).
    """
    named = (*models, *judges)
    if not named:
        raise SettingsError("nobody is named who judges the descriptions; give a language model, a person's votes, or "
                            "another judge")  # fmt: skip
    if twice := sorted({judge for judge in named if named.count(judge) > 1}):
        raise SettingsError(f"the judge {twice[0]!r} is named twice; each judge has one vote, so name it once")
    described = described_texts(descriptions)
    questions = {model: verdict_questions(dict.fromkeys(described), model, answer_tokens) for model in models}
    stored = None if overwrite else descriptions.inspection
    if stored is None:
        return Ballot(described, questions, {model: {} for model in models}, {}, ())
    others = {judge: cast for judge, cast in votes_of(stored, described).items() if judge not in named}
    if others and not add:
        raise SettingsError(
            f"descriptions/{descriptions.run} has votes by {', '.join(others)}; keep them with --add, or replace them "
            "with --overwrite (in Python add=True or overwrite=True)"
        )
    answered: dict[str, dict[Described, Record]] = {model: {} for model in models}
    for each in stored.answers:
        model, place = each["judge"], Described(each["class"], each["text"])
        question = questions.get(model, {}).get(place)
        if question is not None and each["prompt"] == question.prompt and each["value"] is not None:
            answered[model][place] = each
    kept = tuple(each for each in stored.answers if each["judge"] in others)
    return Ballot(described, questions, answered, others, kept)


def described_texts(descriptions: Descriptions) -> tuple[Described, ...]:
    """The class and the text of every description."""
    names = descriptions.classes
    return tuple(
        Described(names[number], text)
        for number, text in zip(descriptions.class_of.tolist(), descriptions.texts, strict=True)
    )


def votes_of(inspection: Inspection, described: Sequence[Described]) -> dict[str, Votes]:
    """The stored vote of every judge on every description."""
    return {
        judge: {
            each: Verdict(number, attribute)
            for each, number, attribute in zip(described, cast.tolist(), inspection.named_by(place), strict=True)
        }
        for place, (judge, cast) in enumerate(zip(inspection.judges, inspection.votes, strict=True))
    }
