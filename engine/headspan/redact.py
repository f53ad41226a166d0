"""Urls and commands without the secrets in them: users, passwords, keys, signatures, tokens.

What is left names the source to a person, and is the same when a signature is renewed. Secrets in a url's path,
and in a command's words that nothing marks as such, are not recognised.
"""

from __future__ import annotations

import re

_HIDDEN = "…"
_USER = re.compile(r"(?<=://)[^/@\s'\"]+@")
# Everything after `?` or `#`, but for what ends the sentence or the bracket that the url stands in.
_QUERY = re.compile(r"(://[^\s?#'\"<>]*)[?#][^\s'\"<>]*?(?=[:;,.)\]]*(?:[\s'\"<>]|$))")
_WORDS = (
    re.compile(r"(?i)\b((?:bearer|basic|token)\s+)[^\s'\"]+"),
    re.compile(
        r"(?i)((?:^|\s)(?:-u|-H|--user|--proxy-user|--header|--password|--token)[\s=]*)('[^']*'|\"[^\"]*\"|\S+)"
    ),
    re.compile(r"(?i)([\w-]*(?:token|secret|passw|key|credential|auth|signature)[\w-]*\s*[=:]\s*)[^\s'\"&]+"),
)


def redact(text: str) -> str:
    """`text` with the user and the query of each url in it left out, and of a `pipe:` command the words that say
    who asks. Doing it twice changes nothing."""
    if "pipe:" in text:
        for secret in _WORDS:
            text = secret.sub(rf"\g<1>{_HIDDEN}", text)
    return _QUERY.sub(rf"\1?{_HIDDEN}", _USER.sub("", text)) if "://" in text else text
