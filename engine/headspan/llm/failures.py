"""Classify failed requests: retry, leave out a parameter, skip the question, or stop.

Statuses and error codes are OpenAI's. Other servers follow them loosely, so the messages are examined too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from headspan.errors import one_line
from headspan.llm.endpoint import Endpoint

_SAID_LENGTH = 300
# By name, since the HTTP library below the client is not a dependency of headspan.
_NEVER_CONNECTED = ("ConnectError", "ConnectTimeout")
# Worth a retry: timeouts, conflicts, rate limits. So are the server's own failures (500 and above).
_PASSING = (408, 409, 425, 429)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits")
_FILTER_CODES = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
# Parameters that an endpoint may refuse, and words by which its message names each.
DIALECT = {
    "response_format": ("response_format", "json_schema", "structured output", "guided", "grammar"),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
}


class Verdict(Enum):
    """What to do about a failed request."""

    WAIT = "retry after a delay"
    # `Failure.parameters` names them.
    REPHRASE = "retry without the parameters that the endpoint does not accept"
    REFUSED = "this question will not be answered"
    STOP = "no question will be answered"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request. `sentence` says what happened and, if nothing more will be answered, what to do."""

    verdict: Verdict
    sentence: str
    # The delay that the endpoint asked for, if it did.
    retry_after_seconds: float | None = None
    parameters: tuple[str, ...] = ()
    # Whether tokens may have been spent although no answer came.
    may_have_cost: bool = False
    # How many attempts it counts as, see `Patience.attempts`.
    weight: int = 1


def no_connection(error: Exception, endpoint: Endpoint, timed_out: bool) -> Failure:
    """The failure of a request without a reply: refused, disconnected, or timed out."""
    connected = type(error.__cause__).__name__ not in _NEVER_CONNECTED
    if timed_out and connected:
        late = f"no reply within {endpoint.timeout_seconds:g} s"
        sentence = f"{endpoint.shown_url}: {late}; raise --timeout, or lower --parallel"
        # A timeout has taken longer than a failure that is reported at once.
        return Failure(Verdict.WAIT, sentence, may_have_cost=True, weight=3)
    cause = endpoint.without_secrets(one_line(error.__cause__ or error))
    what = "the connection was cut" if connected else "cannot be reached"
    sentence = f"{endpoint.shown_url}: {what} ({cause}); check that the endpoint runs and that --base-url is correct"
    return Failure(Verdict.WAIT, sentence, may_have_cost=connected, weight=1 if connected else 2)


def bad_status(status: int, headers: Mapping[str, str], body: str, endpoint: Endpoint, model: str) -> Failure:
    """The failure of a request that was answered with an error status."""
    code, message = _said(body)
    said = endpoint.without_secrets(f"{status}: {message}")
    at = endpoint.shown_url
    lower = f"{code} {message}".lower()
    if status == 402 or code in _QUOTA_CODES:
        return Failure(Verdict.STOP, f"{at}: the quota is exhausted ({said}); add credit there, or use another key")
    if status in _PASSING or status >= 500:
        sentence = f"{at}: keeps failing ({said}); wait until it has recovered, or lower --parallel"
        return Failure(Verdict.WAIT, sentence, retry_after_seconds(headers))
    if status == 401 or (status == 403 and "model" not in lower):
        todo = "set OPENAI_API_KEY to a key of this endpoint"
        came = "the API key was refused" if endpoint.api_key else "an API key is required and none was given"
        return Failure(Verdict.STOP, f"{at}: {came} ({said}); {todo}")
    if any(name in lower for name in _FILTER_CODES):
        return Failure(Verdict.REFUSED, said)
    if _unknown_model(status, lower, model):
        return Failure(Verdict.STOP, f"{at}: has no model {model!r} for this key ({said}); name one that it serves")
    if status == 404:
        todo = "correct --base-url, which usually ends in /v1"
        return Failure(Verdict.STOP, f"{at}: does not serve chat completions ({said}); {todo}")
    named = tuple(name for name, words in DIALECT.items() if any(word in lower for word in words))
    if named and status in (400, 422):
        return Failure(
            Verdict.REPHRASE, f"{at}: does not accept the request ({said}); use another endpoint", None, named
        )
    todo = "check that the model's context is long enough, or name another"
    return Failure(Verdict.STOP, f"{at}: {model} refuses the request ({said}); {todo}")


def _unknown_model(status: int, lower: str, model: str) -> bool:
    if status not in (400, 403, 404, 422) or "model" not in lower:
        return False
    doubts = ("not found", "not exist", "not a valid", "invalid model", "unknown model", "not_found", "no access")
    return any(doubt in lower for doubt in doubts) or (status in (403, 404) and model.lower() in lower)


def _said(body: str) -> tuple[str, str]:
    """Error code and message of a reply's body, as far as it has them."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    code = ""
    # Servers send {"error": {…}}, {"error": "…"}, a list of one of these, or the inner part alone.
    for _ in range(3):
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict):
            code = str(found.get("code") or found.get("type") or code).lower()
            found = found.get("error") or found.get("message") or found.get("detail") or found
    message = found if isinstance(found, str) else "a web page" if body.lstrip().startswith("<") else body
    message = " ".join(message.split()) or "no message"
    return code, message if len(message) <= _SAID_LENGTH else message[:_SAID_LENGTH] + "…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """The delay that a reply asks for, in `retry-after-ms` or `retry-after` (seconds or a date); None without one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        # NaN is ignored, and a time in the past means no delay.
        return max(0.0, seconds) if seconds == seconds else None
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
