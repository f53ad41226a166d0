"""Many questions to an endpoint: the kept answers first, the others asked side by side within a budget.

Answers are kept as they come, so that whatever ends a run, the next one goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.llm.budget import Budget
from headspan.llm.cache import Answer, AnswerCache, Question
from headspan.llm.connection import Connection
from headspan.llm.endpoint import Endpoint
from headspan.llm.worker_pool import WorkerPool, opening, token_bound

# English text has some four bytes a token; for an estimate, not for a bound.
_BYTES_PER_TOKEN = 4
# The standard allowance: every question asked so often, and spare calls for failures.
_ALLOWANCE, _SPARE_CALLS = 3, 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What asking takes: questions in all and answered before, those open, and tokens."""

    questions: int
    kept: int
    open: tuple[Question, ...]
    # Kept answers that another endpoint gave.
    elsewhere: tuple[str, ...]
    prompt_tokens: int
    # Upper bounds.
    answer_tokens: int
    max_tokens: int


class Asker:
    """An endpoint, its answers on disk, and what may be spent on new ones.

    Without `max_calls` or `max_tokens`, each call of `ask` may spend three times what its open questions take at
    most, and some more. `calls` and `tokens` of `budget` say what was spent.
    """

    def __init__(
        self, endpoint: Endpoint, cache: AnswerCache, max_calls: int | None = None, max_tokens: int | None = None
    ) -> None:
        for name, value in (("--max-calls", max_calls), ("--max-tokens", max_tokens)):
            if value is not None and value < 0:
                raise SettingsError(f"{name} {value} is below zero; give what may be spent, or leave it out")
        self.endpoint = endpoint
        self.cache = cache
        self.budget = Budget()
        self._max_calls, self._max_tokens = max_calls, max_tokens

    def plan(self, questions: Sequence[Question]) -> Plan:
        """What `ask` would send; nothing is sent."""
        return self._plan(questions, self.cache.all_kept(questions))

    def _plan(self, questions: Sequence[Question], kept: Mapping[Question, Answer]) -> Plan:
        unique = list(dict.fromkeys(questions))
        if not all(question.model.strip() for question in unique):
            raise SettingsError("a language model without a name cannot be asked; name one with --llm or --judge")
        open_questions = tuple(question for question in unique if question not in kept)
        here = self.endpoint.shown_url
        return Plan(
            questions=len(unique),
            kept=len(kept),
            open=open_questions,
            elsewhere=tuple(sorted({answer.base_url for answer in kept.values()} - {here})),
            prompt_tokens=sum(-(-len(q.prompt.encode()) // _BYTES_PER_TOKEN) for q in open_questions),
            answer_tokens=sum(question.answer_tokens for question in open_questions),
            max_tokens=sum(token_bound(q, opening(q)) for q in open_questions),
        )

    def limits(self, plan: Plan) -> tuple[int, int]:
        """Calls and tokens that asking `plan` may bring the budget to."""
        calls = self.budget.calls + _ALLOWANCE * len(plan.open) + _SPARE_CALLS
        largest = max((token_bound(question, opening(question)) for question in plan.open), default=0)
        tokens = self.budget.tokens + _ALLOWANCE * plan.max_tokens + _SPARE_CALLS * largest
        return (
            calls if self._max_calls is None else self._max_calls,
            tokens if self._max_tokens is None else self._max_tokens,
        )

    def ask(self, questions: Sequence[Question], on_progress: Listener = ignore) -> list[Answer]:
        """An answer to each of `questions`, in order; equal questions are asked once.

        Raises LanguageModelError where the endpoint stops answering, or the budget is spent; what was
        answered until then is kept.
        """
        found = self.cache.all_kept(questions)
        plan = self._plan(questions, found)
        if plan.open:
            self.budget.allow(*self.limits(plan))
            with Connection(self.endpoint) as connection:
                crew = WorkerPool(connection, self.endpoint, self.cache, self.budget)
                # Closed whatever happens, so that no thread goes on asking.
                with closing(crew.run(plan.open)) as arriving:
                    for question, answer in arriving:
                        found[question] = answer
                        note = f"{counted(self.budget.calls, 'call')}, {counted(self.budget.tokens, 'token')}"
                        on_progress(Progress("answers", len(found), plan.questions, note))
        return [found[question] for question in questions]
