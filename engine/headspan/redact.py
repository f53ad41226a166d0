"""Remove secrets from urls and commands: users, passwords, keys, signatures, tokens.

The rest still identifies the source to a person, and stays the same when a signature is renewed. A password may hold
any characters but spaces, quotes and angle brackets. If it has only digits before its first slash it is not found,
since `name:80/` is a host and its port. Secrets in a url's path, and unmarked words of a command, are not recognised.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote

_HIDDEN = "…"
# A url after its scheme, up to a character that cannot be part of it.
_REST = re.compile(r"(?<=://)[^\s'\"<>]+")
# The outer part of a url that contains another, as in `zip://a.tar::s3://bucket/a.zip`.
_OUTER = re.compile(r"[^:@]*::(?=[\w.+-]+(?:://|::))")
_AUTHORITY = re.compile(r"[^/?#]*")
_HOST_AND_PORT = re.compile(r"(?:\[[^\]]*\]|[^:]*)(?::[0-9]{1,5})?")
# Everything after `?` or `#`, without the punctuation of the sentence or bracket around the url.
_QUERY = re.compile(r"(://[^\s?#'\"<>]*)[?#][^\s'\"<>]*?(?=[:;,.)\]]*(?:[\s'\"<>]|$))")
# A word of a shell with its quoted parts, and the gap between a flag and its value.
_WORD = r"(?:'[^']*'|\"(?:[^\"\\]|\\.)*\"|\\.|\S)+"
_GAP = r"(?:(?:\s|\\\n)+|=)"
_QUOTED = r"'[^']*'|\"[^\"]*\""
_MARK = "token|secret|passw|passphrase|key|credential|auth|signature|cookie"
_WORDS = (
    # A quoted url ends with its quote.
    re.compile(r"(\"[\w.+:-]*://[^\"?#]*[?#])[^\"]*"),
    re.compile(r"('[\w.+:-]*://[^'?#]*[?#])[^']*"),
    re.compile(r"(?i)\b((?:bearer|basic|token)\s+)[^\s'\"]+"),
    re.compile(rf"(?i)((?:^|\s)(?:-u|-H|--user|--proxy-user|--header|--password|--token){_GAP}?){_WORD}"),
    # `--account-key X`, and `X_TOKEN=X` before a command. A word that begins with a hyphen is the next flag.
    re.compile(rf"(?i)((?:^|\s)-{{1,2}}(?:[\w-]*(?:{_MARK})[\w-]*|pass\w*){_GAP})(?!-){_WORD}"),
    re.compile(rf"(?i)((?:^|\s|pipe:)[\w-]*(?:{_MARK})[\w-]*=){_WORD}"),
    re.compile(rf"(?i)([\w-]*(?:{_MARK})[\w-]*\s*[=:]\s*)({_QUOTED}|[^\s'\"&]+)"),
    re.compile(rf"(\bsshpass\b[^|;]*?\s-p{_GAP}?){_WORD}"),
)
# Flags of curl that hold secrets (cookies, users, headers, certificates), alone or after flags without values.
_OF_CURL = re.compile(rf"((?:^|\s)-[0-9sSfLkviIgnqOJNRGaBjlp#]*[buHUE]{_GAP}?){_WORD}")
_CURL = re.compile(r"\bcurl\b")
# Shorter values of a query are numbers and names that occur in many sentences.
_SECRET_LETTERS = 6


def redact(text: str) -> str:
    """`text` without the user and the query of each url, and without the credentials of a `pipe:` command.

    Redacting twice changes nothing.
    """
    if "pipe:" in text:
        for secret in _WORDS:
            text = secret.sub(rf"\g<1>{_HIDDEN}", text)
        if curl := _CURL.search(text):
            text = text[: curl.end()] + _OF_CURL.sub(rf"\g<1>{_HIDDEN}", text[curl.end() :])
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\1?{_HIDDEN}", _REST.sub(_without_user, text))


def redact_all_of(url: str, text: str) -> str:
    """`redact(text)`, also without the user, the password and the query values of `url` wherever they occur alone."""
    text = redact(text)
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = re.sub(rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])", _HIDDEN, text)
    return text


def users_of(url: str) -> list[str]:
    """The user and password of a url, with the `@` after them, and those of urls within it; empty if there are none."""
    rest = url.partition("://")[2]
    if outer := _OUTER.match(rest):
        return users_of(rest[outer.end() :])
    return [user] if (user := _user(rest)) else []


def _without_user(rest: re.Match[str]) -> str:
    if outer := _OUTER.match(rest[0]):
        return outer[0] + _REST.sub(_without_user, rest[0][outer.end() :])
    return rest[0][len(_user(rest[0])) :]


def _user(rest: str) -> str:
    """The part before the host in a url without its scheme."""
    end = 0
    while True:
        authority = _AUTHORITY.match(rest, end)
        assert authority is not None
        before, at, _ = authority[0].rpartition("@")
        if (":" in before if at else not _HOST_AND_PORT.fullmatch(authority[0])) and "@" in rest[end:]:
            # A password may hold an @ or a slash. The last @ certainly comes after it.
            return rest[: rest.rindex("@") + 1]
        if not at:
            return rest[:end]
        end += len(before) + 1


def _secrets(url: str) -> set[str]:
    found: set[str] = set()
    for user in users_of(url):
        found |= {user[:-1], *user[:-1].split(":", 1)}
        url = url.replace(user, "")
    found |= {value for _, value in parse_qsl(re.sub(r"^[^?#]*", "", url)[1:]) if len(value) >= _SECRET_LETTERS}
    return {form for secret in found for form in (secret, unquote(secret)) if form}
