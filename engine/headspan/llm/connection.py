"""Send one request through the `openai` client, without parameters that the model has refused.

The client's own retries are off, since every request counts towards the budget.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headspan.errors import one_line
from headspan.llm.cache import Question
from headspan.llm.endpoint import NO_KEY, Endpoint
from headspan.llm.failures import Failure, Verdict, bad_status, no_connection

Message = dict[str, str]
# Connecting has a shorter timeout than waiting for a reply.
_CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply to one request."""

    content: str
    # The stored form: content, refusal, finish_reason, model, usage.
    raw: dict[str, Any]
    # Tokens of prompt and reply; None if the endpoint does not report them.
    tokens: int | None
    # Why there is no content to read; completes "The answer …".
    complaint: str | None = None


class RequestFailedError(Exception):
    """A request that brought no reply."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.sentence)
        self.failure = failure


class Connection:
    """An open client of an endpoint, shared by several threads; a context manager."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Open the client. Raises LanguageModelError if OpenAI's API key is missing."""
        endpoint.check_key()
        # Imported here, since it takes longer than most commands.
        import openai

        self._openai = openai
        self._endpoint = endpoint
        self._client = openai.OpenAI(
            api_key=endpoint.api_key or NO_KEY,
            base_url=endpoint.base_url,
            timeout=openai.Timeout(endpoint.timeout_seconds, connect=min(_CONNECT_SECONDS, endpoint.timeout_seconds)),
            max_retries=0,
        )
        # For each model, the parameters that it refused and is no longer sent.
        self._unknown: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def send(self, question: Question, messages: Sequence[Message], with_schema: bool) -> Reply:
        """Send one request. Raises RequestFailedError if there is no reply or it is not a chat completion."""
        with self._lock:
            left_out = set(self._unknown.get(question.model, ()))
        parameters = _parameters(question, with_schema, left_out)
        try:
            raw = self._client.chat.completions.with_raw_response.create(
                model=question.model,
                messages=list(messages),  # type: ignore[arg-type]
                **parameters,
            )
            body = raw.text
        # A timeout is also a connection error, so it comes first. The client's errors contain the request and the API
        # key, so none is chained.
        except self._openai.APITimeoutError as error:
            raise RequestFailedError(no_connection(error, self._endpoint, timed_out=True)) from None
        except self._openai.APIConnectionError as error:
            raise RequestFailedError(no_connection(error, self._endpoint, timed_out=False)) from None
        except self._openai.APIStatusError as error:
            failure = bad_status(
                error.status_code, error.response.headers, error.response.text, self._endpoint, question.model
            )
            raise RequestFailedError(self._rephrase(failure, question.model, parameters)) from None
        except (self._openai.OpenAIError, UnicodeDecodeError) as error:
            sentence = (
                f"{self._endpoint.shown_url}: {self._endpoint.without_secrets(one_line(error))}; correct --base-url"
            )
            raise RequestFailedError(Failure(Verdict.STOP, sentence)) from None
        return read_reply(self._endpoint.without_secrets(body), self._endpoint)

    def _rephrase(self, failure: Failure, model: str, parameters: dict[str, Any]) -> Failure:
        """Remember the parameters that `model` refused. Without one that can be left out, the failure becomes final."""
        if failure.verdict is not Verdict.REPHRASE:
            return failure
        # The limit's newer name already replaces the older one, and cannot be left out.
        blamed = set(parameters).intersection(failure.parameters)
        with self._lock:
            self._unknown.setdefault(model, set()).update(blamed)
        return failure if blamed else Failure(Verdict.STOP, failure.sentence)


def _parameters(question: Question, with_schema: bool, left_out: set[str]) -> dict[str, Any]:
    # Reasoning models accept only the newer name of the limit, most servers only the older one.
    limit = "max_completion_tokens" if "max_tokens" in left_out else "max_tokens"
    parameters: dict[str, Any] = {limit: question.answer_tokens}
    if "temperature" not in left_out:
        parameters["temperature"] = question.temperature
    if with_schema and "response_format" not in left_out:
        schema = {"name": question.form.name, "strict": True, "schema": question.form.schema}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return parameters


def read_reply(body: str, endpoint: Endpoint) -> Reply:
    """Read a reply's content and usage. Raises RequestFailedError if the body is not a chat completion."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        content, refusal = _words(message.get("content")), _words(message.get("refusal"))
        finish, usage = _words(choice.get("finish_reason")), found.get("usage")
        raw = {
            "content": content,
            "refusal": refusal or None,
            "finish_reason": finish or None,
            "model": _words(found.get("model")) or None,
            "usage": usage if isinstance(usage, dict) else None,
        }
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        start = " ".join(body.split())[:80]
        verdict = Verdict.STOP if start.startswith("<") else Verdict.WAIT
        sentence = (
            f"{endpoint.shown_url}: its reply is not a chat completion ({start or 'nothing'}); correct --base-url, "
            "which usually ends in /v1"
        )
        raise RequestFailedError(Failure(verdict, sentence, may_have_cost=True)) from None
    complaint = None
    if refusal or finish == "content_filter":
        complaint = f"is a refusal: {refusal or content or 'by a content filter'}"
    elif not content.strip():
        complaint = "is empty"
    return Reply(content, raw, _used(usage), complaint)


def _words(value: Any) -> str:
    # JSON may contain lone surrogates, which cannot be encoded in a file.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def _used(usage: Any) -> int | None:
    found = usage.get("total_tokens") if isinstance(usage, dict) else None
    return found if isinstance(found, int) and found > 0 else None
