"""Ask a language model many questions: from the cache first, the others in parallel within a budget.

Every answer is cached when it arrives, so an interrupted run continues where it ended.
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

# English text has about four bytes per token. This is for the estimate; bounds count one token per byte.
_BYTES_PER_TOKEN = 4
# The default budget: calls per question, and further calls for failures.
_ALLOWANCE, _SPARE_CALLS = 3, 10


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """What `ask` would send, and what it would cost."""

    # Different questions, and how many of them have a cached answer.
    questions: int
    cached: int
    # The questions without one, which would be sent.
    open: tuple[Question, ...]
    # Other endpoints that gave cached answers.
    elsewhere: tuple[str, ...]
    # Estimated tokens of the prompts.
    prompt_tokens: int
    # Upper bounds: tokens of the answers, and of prompts and answers together.
    answer_tokens: int
    max_tokens: int

    def __repr__(self) -> str:
        return (
            f"Plan({counted(self.questions, 'question')}, {self.cached} cached; {len(self.open)} to ask, about "
            f"{counted(self.prompt_tokens, 'token')} of prompts and at most {self.answer_tokens:,} of answers)"
        )


class Asker:
    """An endpoint, a cache of its answers, and a budget for new ones.

    `max_calls` and `max_tokens` bound the calls and tokens of all `ask` together; tokens count prompts and answers.
    Without them, each `ask` may spend three times the upper bound of its open questions, plus a reserve for failures.
    `budget.calls` and `budget.tokens` are what has been spent. Raises SettingsError for a negative bound.
    """

    def __init__(
        self, endpoint: Endpoint, cache: AnswerCache, max_calls: int | None = None, max_tokens: int | None = None
    ) -> None:
        for name, value in (("--max-calls", max_calls), ("--max-tokens", max_tokens)):
            if value is not None and value < 0:
                raise SettingsError(f"{name} {value} is below zero; give a bound of 0 or more, or leave it out")
        self.endpoint = endpoint
        self.cache = cache
        self.budget = Budget()
        self._max_calls, self._max_tokens = max_calls, max_tokens

    def plan(self, questions: Sequence[Question]) -> Plan:
        """What `ask` would send for these questions. Raises SettingsError if a question names no model."""
        return self._plan(questions, self.cache.all_cached(questions))

    def _plan(self, questions: Sequence[Question], cached: Mapping[Question, Answer]) -> Plan:
        unique = list(dict.fromkeys(questions))
        if not all(question.model.strip() for question in unique):
            raise SettingsError("the name of the language model is empty; name one with --llm or --judge")
        open_questions = tuple(question for question in unique if question not in cached)
        here = self.endpoint.shown_url
        return Plan(
            questions=len(unique),
            cached=len(cached),
            open=open_questions,
            elsewhere=tuple(sorted({answer.base_url for answer in cached.values()} - {here})),
            prompt_tokens=sum(-(-len(q.prompt.encode()) // _BYTES_PER_TOKEN) for q in open_questions),
            answer_tokens=sum(question.answer_tokens for question in open_questions),
            max_tokens=sum(token_bound(q, opening(q)) for q in open_questions),
        )

    def limits(self, plan: Plan) -> tuple[int, int]:
        """The totals of calls and tokens that the budget may reach by asking `plan`."""
        calls = self.budget.calls + _ALLOWANCE * len(plan.open) + _SPARE_CALLS
        largest = max((token_bound(question, opening(question)) for question in plan.open), default=0)
        tokens = self.budget.tokens + _ALLOWANCE * plan.max_tokens + _SPARE_CALLS * largest
        return (
            calls if self._max_calls is None else self._max_calls,
            tokens if self._max_tokens is None else self._max_tokens,
        )

    def ask(self, questions: Sequence[Question], on_progress: Listener = ignore) -> list[Answer]:
        """Answers to `questions`, in their order; equal questions are asked once.

        An answer's `value` is None if the model gave no usable reply. Raises LanguageModelError if the endpoint cannot
        be used or the budget is spent; answers received before that stay in the cache.
        """
        found = self.cache.all_cached(questions)
        plan = self._plan(questions, found)
        if plan.open:
            self.budget.allow(*self.limits(plan))
            with Connection(self.endpoint) as connection:
                pool = WorkerPool(connection, self.endpoint, self.cache, self.budget)
                # Closed in any case, so that no thread continues to send requests.
                with closing(pool.run(plan.open)) as arriving:
                    for question, answer in arriving:
                        found[question] = answer
                        note = f"{counted(self.budget.calls, 'call')}, {counted(self.budget.tokens, 'token')}"
                        on_progress(Progress("answers", len(found), plan.questions, note))
        return [found[question] for question in questions]
