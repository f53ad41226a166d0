"""Sources over a network: their drivers, how they fail, and when to ask again.

Drivers are other people's code and raise what they like. Whatever one raises is a SourceError, by catching every
exception around each call of a driver, and around nothing else, so that headspan's own mistakes stay visible. What may
pass (a server that is busy, a connection that broke) is tried again after longer and longer waits; what a server has
settled (no such file, no permission), and what looks like a driver's mistake, is not. No error shows a url's secrets.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import fsspec

from headspan.errors import SourceError, one_line
from headspan.redact import redact, redact_all_of, users_of

T = TypeVar("T")

# Waits before a network source is asked again.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# A server that is silent for so long has failed; how long a whole tar takes is nobody's business.
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 60.0
# Answers of servers that another try does not change: all of 400 to 499 but these.
_ASK_AGAIN = (408, 425, 429)
# What Python raises for a path that does not work.
LOCAL_ERRORS = (OSError, ValueError)
# What Python raises for a mistake in a driver.
_MISTAKES = (
    TypeError,
    AttributeError,
    LookupError,
    NameError,
    AssertionError,
    ArithmeticError,
    SyntaxError,
    NotImplementedError,
    RecursionError,
)
# What another try does not change: these, a server's settled answer, and a driver that is missing.
_SETTLED = (
    *_MISTAKES,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    ImportError,
)
# Where one stands in a password as it is, every driver takes it for the end of the host.
_TO_BE_ENCODED = re.compile(r"[/?#\s'\"<>]")


class PassingError(SourceError):
    """A failure of a network source that another try may mend."""


def is_remote(url: str) -> bool:
    """Whether `url` is a `pipe:` command or has a scheme other than `file:`."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def refuse_password(url: str) -> None:
    """Raise SourceError where a user or password holds what ends it for every driver, so that part of it is sent and
    shown as a host."""
    if url.startswith("pipe:") or not any(_TO_BE_ENCODED.search(user) for user in users_of(url)):
        return
    raise SourceError(
        f"{url.partition('://')[0]}://…: the user or password in this url holds a slash, ?, #, a quote or a space; "
        "write each in percent encoding (a slash is %2F)"
    )


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's driver for `url`, and the path that it knows it by. Raises SourceError where there is none."""
    refuse_password(url)
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        # A driver that comes with an extra; where it is missing, fsspec says so below.
        with suppress(ImportError):
            from aiohttp import ClientTimeout

            waits = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
            options = {"client_kwargs": {"timeout": waits}}
    with asking_driver(url):
        fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def again(attempt: Callable[[], T]) -> T:
    """What `attempt` returns, tried again after each of RETRY_SECONDS while its failure may pass."""
    for seconds in RETRY_SECONDS:
        try:
            return attempt()
        except PassingError:
            time.sleep(seconds)
    try:
        return attempt()
    except PassingError as error:
        raise SourceError(f"{error}; it was tried {len(RETRY_SECONDS) + 1} times") from error.__cause__


@contextmanager
def asking_driver(url: str) -> Iterator[None]:
    """Around calls of the driver of `url`: what it raises, whatever that is, becomes a SourceError."""
    try:
        yield
    except Exception as error:
        raise unreadable(url, error) from shown_cause(url, error)


def unreadable(url: str, error: Exception) -> SourceError:
    """The sentence for a url that cannot be read; PassingError where another try may help."""
    kind = PassingError if may_pass(url, error) else SourceError
    todo = "check the path, the connection and the permissions"
    if isinstance(error, ImportError):
        todo = "pip install 'headspan[remote]' has drivers for http, s3 and gs"
    return kind(f"{url}: cannot be read ({told(url, error)}); {todo}")


def told(url: str, error: Exception) -> str:
    """What the error says, without the secrets of `url`; of a mistake in a driver, whose text says little, the type."""
    reason = _reason(error)
    text = one_line(reason)
    if isinstance(reason, _MISTAKES) and text != type(reason).__name__:
        text = f"{type(reason).__name__}: {text}"
    return redact_all_of(url, text) if is_remote(url) else text


def may_pass(url: str, error: Exception) -> bool:
    """Whether a network source that failed so may answer when it is asked again."""
    if not is_remote(url) or url.startswith("pipe:"):
        return False
    error = _reason(error)
    status = _status(error)
    if status is not None and 400 <= status < 500:
        return status in _ASK_AGAIN
    return not isinstance(error, _SETTLED)


def _status(error: Exception) -> int | None:
    """The status of the server's answer, where the error has one."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        # botocore's; requests and httpx have an answer of their own, the other drivers attributes of the error.
        return _number(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    holders = ((answer, "status_code"), (error, "status"), (error, "code"))
    # One at a time: aiohttp warns of whoever asks for its `code`.
    return next((found for each, name in holders if (found := _number(getattr(each, name, None))) is not None), None)


def _number(value: object) -> int | None:
    return int(str(value)) if str(value).isdecimal() else None


def _reason(error: Exception) -> Exception:
    """What a driver met; fsspec calls whatever goes wrong with a first question a file that is not there."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def shown_cause(url: str, error: Exception) -> Exception | None:
    """The cause that a traceback may show: none where its text might hold the url's secrets."""
    return error if redact(url) == url else None
