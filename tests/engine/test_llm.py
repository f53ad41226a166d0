"""Questions to an HTTP server on loopback that fails in the ways of real endpoints."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from headspan.errors import LanguageModelError, SettingsError
from headspan.llm import worker_pool
from headspan.llm.asking import Asker
from headspan.llm.budget import Budget, BudgetSpentError
from headspan.llm.cache import AnswerCache, Question, default_folder
from headspan.llm.endpoint import OPENAI_URL, Endpoint, Patience
from headspan.llm.failures import retry_after_seconds
from headspan.llm.forms import Form, NotAsAskedError, object_of, read_field
from tests.engine.chat_server import KEY, ChatServer, Handler, chat_server

FORM = Form("label", object_of(label={"type": "string"}), lambda text: read_field(text, "label"))
IMPATIENT = Patience(attempts=4, first_wait_seconds=0.01, longest_retry_after_seconds=2.0)
Mishap = Callable[[Handler], None]


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with chat_server() as server:
        server.answer = lambda model, prompt: json.dumps({"label": f"{model} on {prompt}"})
        yield server


def asker(chat: ChatServer, folder: Path, key: str = KEY, **limits: Any) -> Asker:
    return Asker(
        Endpoint(chat.url, key, timeout_seconds=20.0, patience=IMPATIENT), AnswerCache(folder / "kept"), **limits
    )


def questions(count: int, model: str = "m") -> list[Question]:
    return [Question(model, f"question {number}", FORM) for number in range(count)]


def test_answers_come_in_the_order_of_questions_and_equal_questions_are_asked_once(
    chat: ChatServer, tmp_path: Path
) -> None:
    asked = [*questions(7), *questions(3, "other"), *questions(2)]
    answers = asker(chat, tmp_path).ask(asked)
    assert [answer.value for answer in answers] == [f"{one.model} on {one.prompt}" for one in asked]
    assert len(chat.requests) == 10
    assert {answer.served_as for answer in answers[:7]} == {"m-0613"}


def test_a_request_names_model_limit_temperature_and_schema(chat: ChatServer, tmp_path: Path) -> None:
    asker(chat, tmp_path).ask([Question("m", "one", FORM, answer_tokens=33)])
    (request,) = chat.requests
    assert request["messages"] == [{"role": "user", "content": "one"}]
    assert (request["model"], request["max_tokens"], request["temperature"]) == ("m", 33, 0.0)
    assert request["response_format"]["json_schema"] == {"name": "label", "strict": True, "schema": FORM.schema}


def test_a_rerun_is_free_and_needs_neither_key_nor_endpoint(chat: ChatServer, tmp_path: Path) -> None:
    first = asker(chat, tmp_path).ask(questions(5))
    again = Asker(Endpoint(OPENAI_URL), AnswerCache(tmp_path / "kept"), max_calls=0)
    assert [answer.value for answer in again.ask(questions(5))] == [answer.value for answer in first]
    assert len(chat.requests) == 5
    assert again.plan(questions(5)).elsewhere == (chat.url,)
    assert again.budget.calls == 0


@pytest.mark.parametrize(
    ("mishap", "calls"),
    [
        (lambda h: h.fail(429, "slow down", "rate_limit_exceeded"), 2),
        (lambda h: h.fail(500, "oops", None), 2),
        (lambda h: h.raw(503, b"<html>busy</html>", "text/html"), 2),
        (lambda h: h.cut(reset=True), 2),
        (lambda h: h.cut(reset=False), 2),
        (lambda h: h.raw(200, b'{"choices": [{"mess', "application/json"), 2),
        (lambda h: h.raw(200, b"\xff\xfe\x00", "application/json"), 2),
        (lambda h: h.reply(200, {"choices": []}), 2),
        (lambda h: h.reply(200, [1, 2]), 2),
        (lambda h: h.reply(200, {"choices": [{"message": None}]}), 2),
        (lambda h: h.complete(None, refusal="I cannot help with that."), 2),
        (lambda h: h.complete("", "content_filter"), 2),
        (lambda h: h.complete(""), 2),
        (lambda h: h.complete('{"label": "cut of', "length"), 2),
        (lambda h: h.complete("The label is colours."), 2),
        (lambda h: h.complete('{"name": "colours"}'), 2),
        (lambda h: h.complete('{"label": "a"} or {"label": "b"}'), 2),
        (lambda h: h.complete("{" * 5000), 2),
        (lambda h: h.complete('{"label": ' + "[" * 5000), 2),
    ],
)
def test_a_failed_call_is_retried_and_the_answer_arrives(
    mishap: Mishap, calls: int, chat: ChatServer, tmp_path: Path
) -> None:
    chat.mishaps = [mishap]
    (answer,) = asker(chat, tmp_path).ask(questions(1))
    assert answer.value == "m on question 0"
    assert len(chat.requests) == calls


@pytest.mark.parametrize(
    "content",
    [
        '```json\n{"label": "m on question 0"}\n```',
        'Sure! {"label": "m on question 0"} I hope this helps {smile}.',
        '<think>{"label": "colours"}? No.</think>{"label": "m on question 0", "why": "because"}',
        '{"label": "m on question 0"} {"label": "m on question 0"}',
    ],
)
def test_text_around_the_json_is_ignored(content: str, chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.complete(content)]
    assert asker(chat, tmp_path).ask(questions(1))[0].value == "m on question 0"
    assert len(chat.requests) == 1


def test_an_unusable_reply_is_sent_back_to_the_model_with_the_reason(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.complete("colours, I think")]
    (answer,) = asker(chat, tmp_path).ask(questions(1))
    assert [reply["content"] for reply in answer.replies] == ["colours, I think", '{"label": "m on question 0"}']
    _, second = chat.requests
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == "colours, I think"
    assert "contains no JSON object with the field 'label'" in second["messages"][2]["content"]
    # The schema did not lead to JSON, so it is left out.
    assert "response_format" not in second


def test_a_question_without_an_answer_is_reported_and_asked_again_by_the_next_run(
    chat: ChatServer, tmp_path: Path
) -> None:
    chat.mishaps = [lambda h: h.complete("no idea")] * 3
    (answer,) = asker(chat, tmp_path).ask(questions(1))
    assert answer.value is None
    assert answer.complaint == "contains no JSON object with the field 'label'"
    assert len(answer.replies) == len(chat.requests) == 3
    (better,) = asker(chat, tmp_path).ask(questions(1))
    assert better.value == "m on question 0"
    assert len(chat.requests) == 4


def test_a_content_filter_leaves_one_question_unanswered(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.fail(400, "The response was filtered", "content_filter")]
    chat.answer = lambda model, prompt: '{"label": "fine"}'
    answers = Asker(
        Endpoint(chat.url, KEY, parallel=1, patience=IMPATIENT), AnswerCache(tmp_path)
    ).ask(questions(3))  # fmt: skip
    assert [answer.value for answer in answers] == [None, "fine", "fine"]
    assert answers[0].complaint == "is a refusal: 400: The response was filtered"


def test_retry_after_delays_all_threads(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.fail(429, "slow down", None, Retry_After="1")]
    chat.delay_seconds = 0.05
    assert all(answer.value for answer in asker(chat, tmp_path).ask(questions(12)))
    # Requests that were in progress at that moment may still arrive.
    late = [moment - chat.times[0] for moment in chat.times[4:]]
    assert len(late) == 9
    assert min(late) >= 1.0


def test_retry_after_may_be_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after_seconds({"retry-after": later}) or 0) <= 30
    assert retry_after_seconds({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_seconds({"retry-after": "-3"}) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "nan"}):
        assert retry_after_seconds(nothing) is None


def test_delays_grow_and_have_jitter(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.fail(500, "oops", None)] * 3
    patience = Patience(attempts=4, first_wait_seconds=0.2)
    Asker(Endpoint(chat.url, KEY, patience=patience), AnswerCache(tmp_path)).ask(questions(1))
    waits = [later - earlier for earlier, later in zip(chat.times, chat.times[1:], strict=False)]
    for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True):
        assert least <= wait < 2 * least + 0.5


def test_parallel_requests_are_bounded(chat: ChatServer, tmp_path: Path) -> None:
    chat.delay_seconds = 0.05
    endpoint = Endpoint(chat.url, KEY, parallel=3)
    Asker(endpoint, AnswerCache(tmp_path)).ask(questions(20))
    assert chat.busiest == 3


@pytest.mark.parametrize(
    ("mishap", "sentence", "calls"),
    [
        (lambda h: h.fail(401, "Incorrect API key", "invalid_api_key"), "the API key was refused (401: Incorrect", 1),
        (lambda h: h.fail(403, "Country not supported", None), "the API key was refused (403", 1),
        (lambda h: h.fail(404, "The model `m` does not exist", "model_not_found"), "has no model 'm' for this key", 1),
        (lambda h: h.reply(404, {"error": "model 'm' not found, try pulling it first"}), "has no model 'm'", 1),
        (lambda h: h.fail(400, "m is not a valid model ID", None), "has no model 'm'", 1),
        (
            lambda h: h.raw(404, b"<html>", "text/html"),
            "does not serve chat completions (404: a web page); correct --base-url, which usually ends in /v1",
            1,
        ),
        (
            lambda h: h.raw(200, b"<html>", "text/html"),
            "is not a chat completion (<html>); correct --base-url, which usually ends in /v1",
            1,
        ),
        (lambda h: h.fail(429, "You exceeded your quota", "insufficient_quota"), "the quota is exhausted", 1),
        (lambda h: h.fail(402, "Insufficient credits", None), "add credit there, or use another key", 1),
        (lambda h: h.fail(400, "context is 99 tokens too long", None), "m refuses the request (400: context", 1),
        (lambda h: h.fail(429, "slow", None, Retry_After="3600"), "it asks to wait 3,600 s", 1),
        (lambda h: h.fail(500, "oops", None), "keeps failing (500: oops); wait until it has recovered", 4),
        (lambda h: h.cut(reset=True), "the connection was cut", 4),
        (lambda h: h.reply(200, {"error": {"message": "no"}}), "its reply is not a chat completion", 4),
    ],
)
def test_a_fatal_failure_is_one_sentence_and_loses_no_answer(
    mishap: Mishap, sentence: str, calls: int, chat: ChatServer, tmp_path: Path
) -> None:
    one_by_one = Endpoint(chat.url, KEY, parallel=1, patience=IMPATIENT)
    chat.mishaps = [None, None]
    chat.always = mishap
    with pytest.raises(LanguageModelError) as caught:
        Asker(one_by_one, AnswerCache(tmp_path)).ask(questions(5))
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(chat.url)
    assert "2 of 5 answers are cached, run the same command to continue" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(chat.requests) == 2 + calls
    chat.always = None
    assert all(answer.value for answer in Asker(one_by_one, AnswerCache(tmp_path)).ask(questions(5)))
    assert len(chat.requests) == 2 + calls + 3


def test_a_slow_reply_times_out(chat: ChatServer, tmp_path: Path) -> None:
    ended = threading.Event()
    chat.always = lambda h: ended.wait(60)
    # A busy machine may need some tenths of a second for a quick reply.
    endpoint = Endpoint(chat.url, KEY, timeout_seconds=1.0, patience=IMPATIENT)
    with pytest.raises(LanguageModelError, match=r"no reply within 1 s; raise --timeout, or lower --parallel"):
        Asker(endpoint, AnswerCache(tmp_path)).ask(questions(1))
    assert len(chat.requests) == 2
    chat.always, chat.mishaps = None, [lambda h: ended.wait(60)]
    assert Asker(endpoint, AnswerCache(tmp_path)).ask(questions(1))[0].value
    ended.set()


def test_an_endpoint_that_is_down_is_named(tmp_path: Path) -> None:
    with chat_server() as gone:
        url = gone.url
    with pytest.raises(
        LanguageModelError, match=r"127\.0\.0\.1:\d+/v1: cannot be reached \(.*refused\); check that the"
    ):
        Asker(Endpoint(url, patience=IMPATIENT), AnswerCache(tmp_path)).ask(questions(3))


def test_openai_without_a_key_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(
        LanguageModelError, match=r"api\.openai\.com/v1: no API key; set OPENAI_API_KEY, or name another"
    ):
        Asker(Endpoint(), AnswerCache(tmp_path)).ask(questions(1))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base_url": "localhost:8000"}, "the base URL is not an http or https address"),
        ({"base_url": "http://[::1"}, "the base URL is not an http or https address"),
        ({"base_url": "http://h:99999/v1"}, "the base URL is not an http or https address"),
        ({"api_key": "two words"}, "the API key contains a space"),
        ({"api_key": "clé"}, "the API key contains a space or a character that keys do not have"),
        ({"timeout_seconds": 0.0}, "--timeout 0 is too short"),
        ({"parallel": 0}, "--parallel 0 is too small"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Endpoint(**settings)
    assert sentence in str(caught.value)
    assert settings.get("api_key", "\0") not in str(caught.value)


def test_the_environment_names_the_endpoint_and_arguments_have_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert Endpoint.from_environment() == Endpoint(OPENAI_URL, "")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://there/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "theirs\n")
    assert Endpoint.from_environment() == Endpoint("http://there/v1", "theirs")
    assert Endpoint.from_environment("http://here/v1", "mine") == Endpoint("http://here/v1", "mine")
    # An empty variable counts as unset.
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    assert Endpoint.from_environment().base_url == OPENAI_URL


@pytest.mark.parametrize("unknown", [("response_format",), ("max_tokens",), ("temperature", "response_format")])
def test_refused_parameters_are_left_out_from_then_on(
    unknown: tuple[str, ...], chat: ChatServer, tmp_path: Path
) -> None:
    chat.unknown_parameters = unknown
    endpoint = Endpoint(chat.url, KEY, parallel=1)
    assert all(answer.value for answer in Asker(endpoint, AnswerCache(tmp_path)).ask(questions(3)))
    assert len(chat.requests) == 3 + len(unknown)
    assert not set(unknown) & set(chat.requests[-1])
    assert "max_tokens" in chat.requests[-1] or chat.requests[-1]["max_completion_tokens"] == 256


def test_a_budget_in_calls_is_never_exceeded_and_the_next_run_continues(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.fail(500, "oops", None)] * 2
    with pytest.raises(LanguageModelError, match=r"the budget of 5 calls .* 3 of 9 answers are cached.*--max-calls"):
        asker(chat, tmp_path, max_calls=5).ask(questions(9))
    # Retries count as calls.
    assert len(chat.requests) == 5
    assert all(answer.value for answer in asker(chat, tmp_path, max_calls=6).ask(questions(9)))
    assert len(chat.requests) == 11


@pytest.mark.parametrize("says_use", [True, False])
def test_a_budget_in_tokens_is_never_exceeded(says_use: bool, chat: ChatServer, tmp_path: Path) -> None:
    bound = worker_pool.token_bound(questions(1)[0], worker_pool.opening(questions(1)[0]))
    if not says_use:
        chat.usage = None
    limit = 3 * bound + 20
    one = asker(chat, tmp_path, max_tokens=limit)
    with pytest.raises(LanguageModelError, match="has no room for another question"):
        one.ask(questions(200))
    # Each reply reports 50 tokens; without usage, it counts as its upper bound.
    spent = len(chat.requests) * (50 if says_use else bound)
    assert one.budget.tokens == spent <= limit
    assert limit - spent < bound


def test_a_request_waits_for_budget_while_another_is_in_progress() -> None:
    budget = Budget()
    budget.allow(9, 100)
    budget.reserve(80, lambda: False)
    timer = threading.Timer(0.1, budget.settle, (80, 10))
    began = time.monotonic()
    timer.start()
    budget.reserve(80, lambda: False)
    assert time.monotonic() - began >= 0.09
    timer.join()
    budget.settle(80, 80)
    with pytest.raises(BudgetSpentError):
        budget.reserve(11, lambda: False)
    budget.reserve(10, lambda: False)


def test_the_default_budget_allows_three_calls_per_question(chat: ChatServer, tmp_path: Path) -> None:
    one = asker(chat, tmp_path)
    plan = one.plan(questions(20))
    assert (plan.questions, plan.cached, len(plan.open)) == (20, 0, 20)
    calls, tokens = one.limits(plan)
    assert calls == 70
    assert tokens >= 3 * plan.max_tokens
    chat.always = lambda h: h.complete("never")
    assert [answer.value for answer in one.ask(questions(20))] == [None] * 20
    assert len(chat.requests) == 60
    assert one.budget.tokens <= tokens


def test_the_key_is_never_printed_or_stored(chat: ChatServer, tmp_path: Path) -> None:
    chat.key = "another-key-than-is-sent"
    one = asker(chat, tmp_path)
    assert KEY not in repr(one.endpoint)
    with pytest.raises(LanguageModelError) as caught:
        one.ask(questions(1))
    assert "[secret]" in str(caught.value)
    assert KEY not in str(caught.value)
    # Tracebacks show the chain of errors.
    assert caught.value.__cause__ is None
    chat.key = None
    chat.answer = lambda model, prompt: json.dumps({"label": f"you sent {KEY}"})
    (answer,) = one.ask(questions(1))
    assert answer.value == "you sent [secret]"
    assert not any(KEY.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_address_is_shown_without_password_and_query() -> None:
    endpoint = Endpoint("https://me:a-long-password@host:8443/v1/?key=secret-in-query")
    assert endpoint.shown_url == "https://host:8443/v1"
    assert endpoint.without_secrets("a-long-password, secret-in-query and more") == (
        "[secret], secret-in-query and more"
    )
    assert Endpoint("http://[::1]:80/v1").shown_url == "http://[::1]:80/v1"


def kept_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"replies": []}', b"\xff", b'{"replies": [{"content": 7}]}'])
def test_a_damaged_answer_is_asked_for_again_and_replaced(damage: bytes, chat: ChatServer, tmp_path: Path) -> None:
    asker(chat, tmp_path).ask(questions(1))
    (path,) = kept_files(tmp_path)
    good = path.read_bytes()
    path.write_bytes(damage)
    assert asker(chat, tmp_path).ask(questions(1))[0].value == "m on question 0"
    assert len(chat.requests) == 2
    assert path.read_bytes() == good


def test_a_cached_answer_that_its_form_refuses_is_asked_for_again(chat: ChatServer, tmp_path: Path) -> None:
    asker(chat, tmp_path).ask(questions(1))

    def stricter(text: str) -> str:
        value: str = read_field(text, "label")
        if value == "m on question 0":
            raise NotAsAskedError("is not liked any more")
        return value

    chat.answer = lambda model, prompt: '{"label": "better"}'
    (answer,) = asker(chat, tmp_path).ask([Question("m", "question 0", Form("label", FORM.schema, stricter))])
    assert answer.value == "better"


def test_the_cache_is_keyed_by_model_prompt_form_and_temperature(chat: ChatServer, tmp_path: Path) -> None:
    other = Form("other", object_of(label={"type": "string"}), FORM.read)
    different = [
        Question("m", "p", FORM),
        Question("n", "p", FORM),
        Question("m", "q", FORM),
        Question("m", "p", other),
        Question("m", "p", FORM, temperature=1.0),
    ]
    asker(chat, tmp_path).ask(different)
    assert len(chat.requests) == len(kept_files(tmp_path)) == 5
    # A higher limit does not invalidate an answer.
    asker(chat, tmp_path).ask([Question("m", "p", FORM, answer_tokens=9999)])
    assert len(chat.requests) == 5


def test_two_runs_share_a_folder_while_both_are_asking(chat: ChatServer, tmp_path: Path) -> None:
    chat.delay_seconds = 0.01
    found: dict[int, list[str]] = {}

    def run(number: int) -> None:
        found[number] = [answer.value for answer in asker(chat, tmp_path).ask(questions(30))]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2] == [f"m on question {number}" for number in range(30)]
    assert len(kept_files(tmp_path)) == 30


def test_an_impossible_folder_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LanguageModelError, match=r"file/kept: answers cannot be stored there \(.*\); free space, or name"
    ):
        AnswerCache(tmp_path / "file" / "kept")


def test_answers_are_stored_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "headspan" / "answers"


def test_an_answer_with_a_lone_surrogate_is_cached(chat: ChatServer, tmp_path: Path) -> None:
    chat.mishaps = [lambda h: h.complete('{"label": "fine"} \ud800')]
    assert asker(chat, tmp_path).ask(questions(1))[0].value == "fine"
    assert asker(chat, tmp_path).ask(questions(1))[0].value == "fine"
    assert len(chat.requests) == 1
