"""Call fsspec drivers: retry transient failures, and turn every other error into a SourceError.

A driver may raise anything. Every exception of a call of a driver becomes a SourceError, BaseExceptions too. Only
KeyboardInterrupt (Ctrl-C, SIGTERM) is passed on. Exceptions of headspan's own code are not converted, so that its bugs
stay visible. Transient failures, such as a busy server or a broken connection, are retried with increasing waits. Final
answers of a server (no such file, no permission) and bugs in a driver are not retried. No error shows a url's secrets.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import fsspec

from headspan.errors import SourceError, one_line, shortened
from headspan.redact import redact, redact_all_of, users_of

T = TypeVar("T")

# Waits before the second to the sixth try.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# A request fails if the server sends nothing for this long. The time for a whole tar is not limited.
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 60.0
# All HTTP statuses from 400 to 499 except these are final.
_TRANSIENT_STATUSES = (408, 425, 429)
# What Python raises for a path that does not work.
LOCAL_ERRORS = (OSError, ValueError)
# What Python raises for a bug in a driver.
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
# Not retried: bugs, final answers of a server, and a driver that is not installed.
_FINAL = (
    *_MISTAKES,
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ValueError,
    ImportError,
)
# Drivers end the user and password at each of these characters, unless it is percent-encoded.
_TO_BE_ENCODED = re.compile(r"[/?#\s'\"<>]")
# `redact` ends a url within a sentence at each of these characters.
_ENDS_A_URL = re.compile(r"[\s'\"<>]")
# How many characters of an error's text are read. The text is shortened only after its secrets are removed, since half
# a secret would not be recognised.
_READ_LETTERS = 20_000


class TransientError(SourceError):
    """A failure of a network source that may not occur again on another try."""


def is_remote(url: str) -> bool:
    """Whether `url` is a `pipe:` command or has a scheme other than `file:`."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def refuse_unencoded(url: str) -> None:
    """Raise SourceError for a url whose secrets `redact` could not find.

    Either its user or password contains a character at which drivers end them, so that a part of a password would be
    sent and shown as the host. Or it has a query and contains a character at which `redact` ends a url.
    """
    if url.startswith("pipe:") or "://" not in url:
        return
    scheme = f"{shortened(url.partition('://')[0], 100)}://…"
    if any(_TO_BE_ENCODED.search(user) for user in users_of(url)):
        raise SourceError(
            f"{scheme}: the user or password in this url holds a slash, ?, #, a quote or a space; "
            "write each in percent encoding (a slash is %2F)"
        )
    # In the names of objects in a bucket, a # is an ordinary character.
    has_query = "?" in url or ("#" in url and re.search(r"https?://", url, re.IGNORECASE))
    if has_query and _ENDS_A_URL.search(url):
        raise SourceError(
            f"{scheme}: this url has a query and holds a quote, <, > or white space; write each in percent encoding "
            "(a quote ' is %27, a space is %20)"
        )


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's driver for `url`, and the path by which the driver knows it. Raises SourceError if there is none."""
    refuse_unencoded(url)
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        # aiohttp is an optional dependency. If it is missing, fsspec raises an error below.
        with suppress(ImportError):
            from aiohttp import ClientTimeout

            timeout = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
            options = {"client_kwargs": {"timeout": timeout}}
    with calling_driver(url):
        fs, path = fsspec.core.url_to_fs(url, **options)
    return fs, path


def retry(attempt: Callable[[], T]) -> T:
    """Return what `attempt` returns. It is called again after each of RETRY_SECONDS while it raises TransientError.

    Raises SourceError with the last failure.
    """
    for seconds in RETRY_SECONDS:
        try:
            return attempt()
        except TransientError:
            time.sleep(seconds)
    try:
        return attempt()
    except TransientError as error:
        raise SourceError(f"{error}; it was tried {len(RETRY_SECONDS) + 1} times") from error.__cause__


@contextmanager
def calling_driver(url: str) -> Iterator[None]:
    """Turn everything that the driver of `url` raises into a SourceError."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    # Some drivers raise exceptions that are not Exceptions: SystemExit, or the cancellation of their own tasks.
    except BaseException as error:
        raise unreadable(url, error) from shown_cause(url, error)


def unreadable(url: str, error: BaseException) -> SourceError:
    """The error for a url that cannot be read; a TransientError if another try may help."""
    kind = TransientError if is_transient(url, error) else SourceError
    todo = "check the path, the connection and the permissions"
    if isinstance(error, ImportError):
        todo = "pip install 'headspan[remote]' has drivers for http, s3 and gs"
    return kind(f"{url}: cannot be read ({error_text(url, error)}); {todo}")


def close_quietly(file: Any) -> None:
    """Close a driver's file that is no longer needed, and ignore errors."""
    try:
        file.close()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return


def error_text(url: str, error: BaseException) -> str:
    """The error's text, shortened and without the secrets of `url`.

    The text of a bug in a driver says little, so the error's type is added. If the text cannot be read, only the type
    is returned.
    """
    return shortened(_read_from_error(lambda: _text(url, error), type(error).__name__))


def is_transient(url: str, error: BaseException) -> bool:
    """Whether `error` is a failure of a network source that may not occur again on another try."""
    if not is_remote(url) or url.startswith("pipe:"):
        return False
    reason = _read_from_error(lambda: _reason(error), error)
    status = _read_from_error(lambda: _status(reason), None)
    if status is not None and 400 <= status < 500:
        return status in _TRANSIENT_STATUSES
    return isinstance(reason, Exception | asyncio.CancelledError) and not isinstance(reason, _FINAL)


def shown_cause(url: str, error: BaseException) -> BaseException | None:
    """The cause that a traceback may show: None if its text might hold the url's secrets."""
    return error if redact(url) == url else None


def _read_from_error(read: Callable[[], T], default: T) -> T:
    """What `read` returns; `default` if it raises, since a driver's error may raise in its own methods."""
    try:
        return read()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return default


def _text(url: str, error: BaseException) -> str:
    reason = _reason(error)
    if not is_remote(url) and isinstance(reason, OSError) and reason.strerror:
        # Without its number and the path, which the sentence names.
        return reason.strerror
    text = one_line(reason)[:_READ_LETTERS]
    says_little = isinstance(reason, _MISTAKES) or not isinstance(reason, Exception)
    if says_little and text != type(reason).__name__:
        text = f"{type(reason).__name__}: {text}"
    return redact_all_of(url, text) if is_remote(url) else text


def _status(error: BaseException) -> int | None:
    """The HTTP status of the server's answer, if the error has one."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        # botocore's errors have a dictionary, those of requests and httpx an object, those of other drivers attributes.
        return _status_number(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    holders = ((answer, "status_code"), (error, "status"), (error, "code"))
    # Attributes are read one at a time, since reading `code` of aiohttp's errors emits a warning.
    found = (_status_number(getattr(holder, name, None)) for holder, name in holders)
    return next((status for status in found if status is not None), None)


def _status_number(value: object) -> int | None:
    return int(str(value)) if re.fullmatch("[0-9]{3}", str(value)) else None


def _reason(error: BaseException) -> BaseException:
    """The original failure; fsspec reports a failed first request as FileNotFoundError with that as its cause."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error
