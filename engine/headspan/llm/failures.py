"""What went wrong with a request: whether to wait and send it again, to say it otherwise, or to stop; and the sentence.

Statuses and error codes are OpenAI's; other servers follow them more or less, so messages are looked at too.
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
# By name, as the library under the client has changed and is none of headspan's.
_NEVER_CONNECTED = ("ConnectError", "ConnectTimeout")
# Later it may work: timeouts, conflicts, limits of rate, and the server's own failures.
_PASSING = (408, 409, 425, 429)
_QUOTA_CODES = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_credits")
_FILTER_CODES = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
# What an endpoint may not know, and how its complaint can be told.
DIALECT = {
    "response_format": ("response_format", "json_schema", "structured output", "guided", "grammar"),
    "max_tokens": ("max_tokens", "max_completion_tokens"),
    "temperature": ("temperature",),
}


class Verdict(Enum):
    """What to do about a failed request."""

    WAIT = "send it again after a while"
    # `Failure.parameters` are named by the complaint.
    REPHRASE = "send it again without what the endpoint does not know"
    REFUSED = "this question is not going to be answered"
    STOP = "no question is going to be answered"


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed request. `sentence` says what came and, where that stops everything, what to do."""

    verdict: Verdict
    sentence: str
    # What the endpoint asked for, if it did.
    retry_after_seconds: float | None = None
    parameters: tuple[str, ...] = ()
    # Whether tokens may have been used though no answer came.
    may_have_cost: bool = False
    # How many of the attempts that patience allows it takes up.
    weight: int = 1


def no_connection(error: Exception, endpoint: Endpoint, timed_out: bool) -> Failure:
    """A request that got no reply: nobody there, a connection that was cut, or a reply that took too long."""
    connected = type(error.__cause__).__name__ not in _NEVER_CONNECTED
    if timed_out and connected:
        late = f"no reply within {endpoint.timeout_seconds:g} s"
        sentence = f"{endpoint.shown_url}: {late}; raise --timeout, or lower --parallel"
        # A reply that took too long has cost more patience than one that said no at once.
        return Failure(Verdict.WAIT, sentence, may_have_cost=True, weight=3)
    cause = endpoint.without_secrets(one_line(error.__cause__ or error))
    what = "the connection is cut" if connected else "cannot be reached"
    sentence = f"{endpoint.shown_url}: {what} ({cause}); see that the endpoint runs, and that --base-url is right"
    return Failure(Verdict.WAIT, sentence, may_have_cost=connected, weight=1 if connected else 2)


def bad_status(status: int, headers: Mapping[str, str], body: str, endpoint: Endpoint, model: str) -> Failure:
    """A reply that says that there will be none."""
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
        came = "the key was refused" if endpoint.api_key else "a key is wanted and none was given"
        return Failure(Verdict.STOP, f"{at}: {came} ({said}); {todo}")
    if any(name in lower for name in _FILTER_CODES):
        return Failure(Verdict.REFUSED, said)
    if _unknown_model(status, lower, model):
        return Failure(Verdict.STOP, f"{at}: has no model {model!r} for you ({said}); name one that it serves")
    if status == 404:
        todo = "the base URL usually ends in /v1, so mend --base-url"
        return Failure(Verdict.STOP, f"{at}: nothing there answers chat completions ({said}); {todo}")
    named = tuple(name for name, words in DIALECT.items() if any(word in lower for word in words))
    if named and status in (400, 422):
        return Failure(Verdict.REPHRASE, f"{at}: does not take the request ({said}); use another endpoint", None, named)
    todo = "check that the model's context is long enough, or name another"
    return Failure(Verdict.STOP, f"{at}: {model} refuses the request ({said}); {todo}")


def _unknown_model(status: int, lower: str, model: str) -> bool:
    if status not in (400, 403, 404, 422) or "model" not in lower:
        return False
    doubts = ("not found", "not exist", "not a valid", "invalid model", "unknown model", "not_found", "no access")
    return any(doubt in lower for doubt in doubts) or (status in (403, 404) and model.lower() in lower)


def _said(body: str) -> tuple[str, str]:
    """Error code and message of a body, as far as it has them."""
    try:
        found: Any = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    code = ""
    # Some send {"error": {…}}, some {"error": "…"}, some a list of one, some the inner part alone.
    for _ in range(3):
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict):
            code = str(found.get("code") or found.get("type") or code).lower()
            found = found.get("error") or found.get("message") or found.get("detail") or found
    message = found if isinstance(found, str) else "a web page" if body.lstrip().startswith("<") else body
    message = " ".join(message.split()) or "without a word"
    return code, message if len(message) <= _SAID_LENGTH else message[:_SAID_LENGTH] + "…"


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Seconds that a reply asks to wait: `retry-after-ms`, `retry-after` as seconds or as a date; None without."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        # Neither NaN nor the past.
        return max(0.0, seconds) if seconds == seconds else None
    try:
        date = parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
