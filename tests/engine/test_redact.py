"""No part of a url's secrets appears in a message, a name or a traceback, whatever characters they hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from headspan.errors import HeadspanError, SourceError
from headspan.io import retry as network
from headspan.redact import redact, redact_all_of
from headspan.run.planned_sources import as_planned
from headspan.shards.describe import describe
from headspan.shards.samples import Shard
from headspan.shards.sources import open_shard
from headspan.shards.urls import expand, stored_names
from tests.engine.troubled_driver import DriverError, Troubled

# Only secrets have capital letters, so any capital letter that is left is a leak.
SECRETS = st.text(alphabet="QXZ0189@/?#:%&=+.,;-_~!$*()[]{}", min_size=1, max_size=12)
USERS = st.text(alphabet="QXZ0189.-_", min_size=1, max_size=6)
SCHEMES = st.sampled_from(["https", "http", "s3", "gs", "ftp", "webdav"])


def looks_like_a_port(password: str) -> bool:
    """Whether the password cannot be distinguished from a port, as in `host:80/path`."""
    return re.match(r"[0-9]{1,5}[/?#]", password) is not None


@settings(max_examples=500)
@given(scheme=SCHEMES, user=USERS, password=SECRETS, around=st.sampled_from(["{}", "{}: cannot be read", "(see '{}')"]))
def test_no_part_of_any_password_is_left(scheme: str, user: str, password: str, around: str) -> None:
    assume(not looks_like_a_port(password))
    url = f"{scheme}://{user}:{password}@host/dir/a.tar"
    text = around.format(url)
    assert redact(text) == around.format(f"{scheme}://host/dir/a.tar")
    assert redact(redact(text)) == redact(text)
    assert str(HeadspanError(text)) == redact(text)
    assert list(stored_names([url])) == [f"{scheme}://host/dir/a.tar"]


@settings(max_examples=1000)
@given(text=st.text(alphabet="ab1:@/?#.,;) '…=[]\"<h", max_size=40))
def test_redacting_twice_changes_nothing(text: str) -> None:
    for each in (text, text.replace("h", "https://"), "pipe:curl -u a:b " + text.replace("h", "s3://")):
        assert redact(redact(each)) == redact(each)


@pytest.mark.parametrize(
    "url",
    [
        "https://h:8080/a@b.tar", "http://[::1]:8080/a@b.tar", "http://[::1]/a@b.tar", "hf://datasets/o/n@main/a.tar",
        "zip://a.tar::s3://bucket/x@y.zip", "simplecache::s3://bucket/a@2x.tar", "s3://bucket/{0..3}@x.tar",
    ],
)  # fmt: skip
def test_an_at_sign_in_a_path_is_not_a_user(url: str) -> None:
    assert redact(url) == url
    assert expand(["s3://b/a.tar", url])[1:]


def test_users_of_urls_within_urls_are_removed() -> None:
    assert redact("zip://a.tar::https://me:p@ss@h/x.zip and simplecache::s3://k:s@b/a.tar") == (
        "zip://a.tar::https://h/x.zip and simplecache::s3://b/a.tar"
    )


def test_secrets_that_occur_alone_in_a_drivers_text_are_removed() -> None:
    url = "https://me:p%40ss@h/a.tar?sig=c2lnbmVk&n=1"
    text = "no access for me with p@ss (p%40ss, c2lnbmVk) to the same name 1"
    assert redact_all_of(url, text) == "no access for … with … (…, …) to the same name 1"


def refusal_of(ask: Callable[[], object]) -> SourceError | None:
    """The error that `ask` raises, if any."""
    try:
        ask()
    except SourceError as error:
        return error
    return None


@settings(max_examples=100, deadline=None)
@given(user=USERS, password=SECRETS, encoded=st.booleans())
def test_no_message_of_a_command_shows_a_part_of_a_user_or_password(user: str, password: str, encoded: bool) -> None:
    assume(not looks_like_a_port(password) and re.search("[QXZ]", user + password))
    secret = f"{user}:{quote(password, safe='') if encoded else password}"
    url = f"troubled://{secret}@host/a.tar"
    refused = not encoded and re.search(r"[/?#]", password)
    for ask in (
        lambda: expand([url.replace("{", "[").replace("}", "]")]),
        lambda: describe(url),
        lambda: open_shard(url),
    ):
        # Drivers report the url, and its parts as they parse it.
        Troubled.trouble = {"init": [KeyError(f"{url}, {secret}, {user} and {password}")]}
        shown: BaseException | None = refusal_of(ask)
        assert not refused or "percent encoding" in str(shown)
        while shown is not None:
            assert not re.search("[QXZ]", str(shown)), shown
            shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    Troubled.trouble = {}


@pytest.mark.parametrize("password", ["pa/ss", "pa?ss", "pa#ss", "pa ss", "pa'ss", "/", "p@s/s"])
def test_a_password_that_drivers_would_mistake_for_a_host_is_refused(password: str) -> None:
    url = f"https://me:{password}@h/a.tar"
    for ask in (lambda: expand([url]), lambda: open_shard(url)):
        with pytest.raises(SourceError, match=r"^https://…: the user or password in this url holds .*%2F"):
            ask()


def test_a_retried_driver_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Troubled, "trouble", {"info": [DriverError("no access for QQQ with XXX")] * 9})
    with pytest.raises(SourceError, match=r"no access for … with ….*tried 6 times"):
        describe("troubled://QQQ:XXX@host/a.tar")


# A secret in a query, or after a character of the path that ends a url in a sentence.
UNENCODED = st.text(alphabet="QXZ0'\"<> \t&=;,)", max_size=6)


@settings(max_examples=200)
@given(path=UNENCODED, query=UNENCODED, mark=st.sampled_from("?#"), braces=st.sampled_from(["", "{", "{0..1}"]))
def test_a_query_is_refused_or_removed_completely(path: str, query: str, mark: str, braces: str) -> None:
    url = f"https://h/{re.sub('[QXZ0]', 'p', path)}a.tar{braces}{mark}a={query}&token=SECRET"
    try:
        shown = str(list(stored_names(expand([url]))))
    except SourceError as error:
        shown = str(error)
    assert not re.search("[QXZ]|SECRET", shown), shown
    assert bool(re.search("['\"<> \t]", url)) == ("percent encoding" in shown)


def test_names_in_buckets_may_have_spaces_and_quotes() -> None:
    for url in ("s3://b/my dir/it's.tar", "s3://b/a #1.tar", "https://h/my dir/a.tar"):
        assert list(stored_names(expand([url]))) == [url]


MARKED = ["az --account-key {}", "az --sas-token {}", "az --sas-token={}", "az --no-key --account-key {}"]
MARKED += ["curl -b {}", "curl -sSb {} -L", "curl -b a=b -b {}", "curl --cookie {}", "curl -fsu {}", "x -password {}"]
MARKED += ["sshpass -p {}", "sshpass -v -p {} ssh", "X_TOKEN={} aws", "openssl -passin {}", "az --account-key \\\n {}"]
SHELL_SECRETS = st.text(alphabet="QXZ '\"&=;|\\$-", min_size=1).filter(lambda secret: secret[0] != "-")


@settings(max_examples=300)
@given(form=st.sampled_from(MARKED), secret=SHELL_SECRETS)
def test_words_after_a_flag_for_secrets_are_removed_completely(form: str, secret: str) -> None:
    command = "pipe:" + form.format(shlex.quote(secret)) + " https://h/a.tar"
    left = redact(command)
    assert not re.search("[QXZ]", left.replace("X_TOKEN", "")), left
    assert left.endswith("https://h/a.tar")
    assert redact(left) == left


def test_a_store_whose_name_for_a_shard_still_holds_a_secret_is_continued() -> None:
    old = "pipe:az --account-key SECRET | cat"
    planned = [Shard(old, 0, 9, None, None)]
    assert as_planned(planned, {}, stored_names([old])) == {old: old}
    assert as_planned(planned, {}, stored_names(["pipe:az --other-key SECRET"])).keys() != {old}


@pytest.mark.parametrize(
    ("command", "left"),
    [
        ("pipe:TOKEN='s3 cret' aws s3 cp s3://b/a.tar -", "pipe:TOKEN=… aws s3 cp s3://b/a.tar -"),
        ('pipe:curl --password "s3 cret" https://h/a.tar', "pipe:curl --password … https://h/a.tar"),
        ("pipe:curl https://me:p@/s?s@h/a.tar", "pipe:curl https://h/a.tar"),
        ("pipe:tar -b 20 -cf - a | ssh -p 22 h", "pipe:tar -b 20 -cf - a | ssh -p 22 h"),
        ('pipe:curl -fsSL "https://h/a?n=it\'s&t=s3cret" | cat', 'pipe:curl -fsSL "https://h/a?…" | cat'),
        ("pipe:curl -ume:pa/ss https://h/a.tar", "pipe:curl -u… https://h/a.tar"),
    ],
)
def test_secrets_of_commands_are_removed(command: str, left: str) -> None:
    assert redact(command) == left
    assert redact(left) == left
