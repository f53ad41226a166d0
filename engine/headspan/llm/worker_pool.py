"""Threads that ask questions: each sends one question at a time until there is a usable answer.

If a reply does not have the requested form, the model is told why and asked again. A failed request is retried after a
delay with jitter, and not before the endpoint allows it. Usable answers are cached at once.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Generator, Sequence

from headspan.errors import LanguageModelError, counted
from headspan.llm.budget import Budget, BudgetSpentError
from headspan.llm.cache import Answer, AnswerCache, Question
from headspan.llm.connection import Connection, Message, Reply, RequestFailedError
from headspan.llm.endpoint import Endpoint
from headspan.llm.failures import Failure, Verdict
from headspan.llm.forms import NotAsAskedError

# Replies to a question, after which it counts as unanswered.
_ASKS = 3
# Letters of an unusable reply that are sent back to the model.
_SHOWN_AGAIN = 400
# Upper bound of the tokens that a chat template adds to a message.
_TEMPLATE_TOKENS = 100
# Seconds that an interrupted run waits for its threads.
_LEAVE_SECONDS = 1.0

Outcome = tuple[Question, Answer] | BaseException | None


class StoppedError(Exception):
    """This thread ended because another one failed."""


class WorkerPool:
    """The threads of one `ask`, and the state that they share."""

    def __init__(self, connection: Connection, endpoint: Endpoint, cache: AnswerCache, budget: Budget) -> None:
        self._connection, self._endpoint, self._cache, self._budget = connection, endpoint, cache, budget
        self._stop = threading.Event()
        # No thread sends before this time, since a rate limit holds for all of them.
        self._hold_until = 0.0
        self._random = random.Random()

    def run(self, questions: Sequence[Question]) -> Generator[tuple[Question, Answer], None, None]:
        """Yield answers as they arrive. Raises the first failure after all threads have ended."""
        todo: queue.SimpleQueue[Question] = queue.SimpleQueue()
        done: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        for question in questions:
            todo.put(question)
        # Daemon threads, so that an interrupted program need not wait minutes for a reply.
        threads = [
            threading.Thread(target=self._work, args=(todo, done), name="headspan-ask", daemon=True)
            for _ in range(min(self._endpoint.parallel, len(questions)))
        ]
        for thread in threads:
            thread.start()
        failure: BaseException | None = None
        answered, working = 0, len(threads)
        try:
            while working:
                item = done.get()
                if item is None:
                    working -= 1
                elif isinstance(item, BaseException):
                    failure = failure or item
                else:
                    answered += 1
                    yield item
        finally:
            self._stop.set()
            deadline = time.monotonic() + _LEAVE_SECONDS
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if isinstance(failure, BudgetSpentError):
            budget = self._budget
            raise LanguageModelError(
                f"the budget of {counted(budget.max_calls, 'call')} and {counted(budget.max_tokens, 'token')} "
                "has no room for another question (spent: "
                f"{counted(budget.calls, 'call')} and {counted(budget.tokens, 'token')}; {answered} of "
                f"{len(questions)} answers are cached); raise --max-calls and --max-tokens, and run the same command "
                "to continue"
            )
        if isinstance(failure, RequestFailedError):
            kept = f"; {answered} of {len(questions)} answers are cached, run the same command to continue"
            raise LanguageModelError(f"{failure.failure.sentence}{kept if answered else ''}")
        if failure is not None:
            raise failure

    def _work(self, todo: queue.SimpleQueue[Question], done: queue.SimpleQueue[Outcome]) -> None:
        try:
            while not self._stop.is_set():
                question = todo.get_nowait()
                done.put((question, self._answer(question)))
        except (queue.Empty, StoppedError):
            pass
        # Passed to `run`, which raises it.
        except BaseException as error:
            done.put(error)
            self._stop.set()
        finally:
            done.put(None)

    def _answer(self, question: Question) -> Answer:
        # Another process may have cached the answer meanwhile.
        if cached := self._cache.read(question):
            return cached
        messages, replies = opening(question), []
        with_schema, complaint = True, ""
        for _ in range(_ASKS):
            try:
                reply = self._send(question, messages, with_schema)
            except RequestFailedError as error:
                if error.failure.verdict is not Verdict.REFUSED:
                    raise
                complaint = f"is a refusal: {error.failure.sentence}"
                break
            replies.append(reply.raw)
            complaint = reply.complaint or ""
            if not complaint:
                try:
                    answer = Answer(question.form.read(reply.content), tuple(replies), self._endpoint.shown_url)
                except NotAsAskedError as error:
                    complaint = str(error)
                else:
                    self._cache.write(question, answer)
                    return answer
            if reply.raw["finish_reason"] == "length":
                complaint += f" (cut at {question.answer_tokens} tokens)"
            # A schema can drive a weak model into a loop, so the next request leaves it out.
            with_schema = with_schema and "{" in reply.content and reply.raw["finish_reason"] != "length"
            messages = _again(question, reply, complaint)
        return Answer(None, tuple(replies), self._endpoint.shown_url, complaint)

    def _send(self, question: Question, messages: Sequence[Message], with_schema: bool) -> Reply:
        """Send requests until there is a reply. Raises RequestFailedError after the attempts that patience allows."""
        bound = token_bound(question, messages)
        failures = 0
        while True:
            self._wait_for_rate_limit()
            self._budget.reserve(bound, self._stop.is_set)
            # If the usage is unknown, the bound counts as spent.
            used = bound
            try:
                reply = self._connection.send(question, messages, with_schema)
                used = bound if reply.tokens is None else reply.tokens
                return reply
            except RequestFailedError as error:
                failure = error.failure
                used = bound if failure.may_have_cost else 0
            finally:
                self._budget.settle(bound, used)
            if failure.verdict is not Verdict.REPHRASE:
                failures += failure.weight
                self._wait_or_raise(failure, failures)

    def _wait_or_raise(self, failure: Failure, failures: int) -> None:
        patience = self._endpoint.patience
        asked = failure.retry_after_seconds or 0.0
        if failure.verdict is not Verdict.WAIT or failures >= patience.attempts:
            raise RequestFailedError(failure)
        if asked > patience.longest_retry_after_seconds:
            sentence = f"{failure.sentence} (it asks to wait {asked:,.0f} s)"
            raise RequestFailedError(Failure(Verdict.STOP, sentence))
        backoff = min(patience.longest_wait_seconds, patience.first_wait_seconds * 2 ** (failures - 1))
        jitter = backoff * self._random.uniform(0.5, 1.0)
        if asked:
            self._hold_until = max(self._hold_until, time.monotonic() + asked)
            # The jitter keeps the threads from returning at the same time.
            self._pause(asked + min(jitter, patience.first_wait_seconds))
        else:
            self._pause(jitter)

    def _wait_for_rate_limit(self) -> None:
        while (left := self._hold_until - time.monotonic()) > 0:
            self._pause(left)
        self._pause(0.0)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError


def opening(question: Question) -> list[Message]:
    """The messages of the first request for a question."""
    return [_said_by_user(question.prompt)]


def token_bound(question: Question, messages: Sequence[Message]) -> int:
    """Upper bound of a request's tokens, since no token is shorter than a byte."""
    prompts = sum(len(message["content"].encode()) + _TEMPLATE_TOKENS for message in messages)
    return prompts + len(json.dumps(question.form.schema)) + question.answer_tokens


def _again(question: Question, reply: Reply, complaint: str) -> list[Message]:
    messages = opening(question)
    # Chat templates require alternating roles, so the content must not be empty.
    messages.append({"role": "assistant", "content": reply.content.strip()[:_SHOWN_AGAIN] or "…"})
    messages.append(
        _said_by_user(f"This answer {complaint[:_SHOWN_AGAIN]}. Answer with the JSON object alone, as asked.")
    )
    return messages


def _said_by_user(content: str) -> Message:
    return {"role": "user", "content": content}
