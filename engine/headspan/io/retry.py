"""Sources over a network: their drivers, how they fail, and when to ask again.

Drivers are other people's code and raise what they like. Whatever one raises is a SourceError, by catching every
exception (BaseExceptions too) around each call of a driver, and around nothing else, so that headspan's own mistakes
stay visible. KeyboardInterrupt alone passes through: Ctrl-C and SIGTERM are the user's. What may pass (a server that is
busy, a connection that broke) is tried again after longer and longer waits; what a server has settled (no such file, no
permission), and what looks like a driver's mistake, is not. No error shows a url's secrets.
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
# What ends a url for whoever reads a sentence, `redact` among them.
_ENDS_A_URL = re.compile(r"[\s'\"<>]")


# What is read of an error's text. A text is cut after its secrets are left out, lest half a secret be none.
_READ_LETTERS = 20_000


class PassingError(SourceError):
    """A failure of a network source that another try may mend."""


def is_remote(url: str) -> bool:
    """Whether `url` is a `pipe:` command or has a scheme other than `file:`."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def refuse_unencoded(url: str) -> None:
    """Raise SourceError for a url whose secrets could not be told from what stands around them.

    That is one whose user or password holds what ends it for every driver, so that part of it is sent and shown as a
    host, and one with a query that holds, or stands behind, what ends a url within a sentence.
    """
    if url.startswith("pipe:") or "://" not in url:
        return
    scheme = f"{shortened(url.partition('://')[0], 100)}://…"
    if any(_TO_BE_ENCODED.search(user) for user in users_of(url)):
        raise SourceError(
            f"{scheme}: the user or password in this url holds a slash, ?, #, a quote or a space; "
            "write each in percent encoding (a slash is %2F)"
        )
    # In the names of objects in a bucket, a # is a letter.
    has_query = "?" in url or ("#" in url and re.search(r"https?://", url, re.IGNORECASE))
    if has_query and _ENDS_A_URL.search(url):
        raise SourceError(
            f"{scheme}: this url has a query and holds a quote, <, > or white space; write each in percent encoding "
            "(a quote ' is %27, a space is %20)"
        )


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's driver for `url`, and the path that it knows it by. Raises SourceError where there is none."""
    refuse_unencoded(url)
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
    except KeyboardInterrupt:
        raise
    # A driver may raise what is no Exception: SystemExit, or the cancellation of a task of its own.
    except BaseException as error:
        raise unreadable(url, error) from shown_cause(url, error)


def unreadable(url: str, error: BaseException) -> SourceError:
    """The sentence for a url that cannot be read; PassingError where another try may help."""
    kind = PassingError if may_pass(url, error) else SourceError
    todo = "check the path, the connection and the permissions"
    if isinstance(error, ImportError):
        todo = "pip install 'headspan[remote]' has drivers for http, s3 and gs"
    return kind(f"{url}: cannot be read ({told(url, error)}); {todo}")


def close_quietly(file: Any) -> None:
    """Close a driver's file of which nothing more is wanted, so that no failure of it matters."""
    try:
        file.close()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return


def told(url: str, error: BaseException) -> str:
    """What the error says, without the secrets of `url`; of a mistake in a driver, whose text says little, the type.

    Long texts are cut. An error that cannot be asked what it says is told by its type.
    """
    return shortened(_found_out(lambda: _said(url, error), type(error).__name__))


def may_pass(url: str, error: BaseException) -> bool:
    """Whether a network source that failed so may answer when it is asked again."""
    if not is_remote(url) or url.startswith("pipe:"):
        return False
    reason = _found_out(lambda: _reason(error), error)
    status = _found_out(lambda: _status(reason), None)
    if status is not None and 400 <= status < 500:
        return status in _ASK_AGAIN
    return isinstance(reason, Exception | asyncio.CancelledError) and not isinstance(reason, _SETTLED)


def _found_out(ask: Callable[[], T], otherwise: T) -> T:
    """What `ask` finds out about a driver's error, whose own methods and properties may raise: then `otherwise`."""
    try:
        return ask()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return otherwise


def _said(url: str, error: BaseException) -> str:
    reason = _reason(error)
    text = one_line(reason)[:_READ_LETTERS]
    says_little = isinstance(reason, _MISTAKES) or not isinstance(reason, Exception)
    if says_little and text != type(reason).__name__:
        text = f"{type(reason).__name__}: {text}"
    return redact_all_of(url, text) if is_remote(url) else text


def _status(error: BaseException) -> int | None:
    """The status of the server's answer, where the error has one."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        # botocore's; requests and httpx have an answer of their own, the other drivers attributes of the error.
        return _number(answer.get("ResponseMetadata", {}).get("HTTPStatusCode"))
    holders = ((answer, "status_code"), (error, "status"), (error, "code"))
    # One at a time: aiohttp warns of whoever asks for its `code`.
    return next((found for each, name in holders if (found := _number(getattr(each, name, None))) is not None), None)


def _number(value: object) -> int | None:
    return int(str(value)) if re.fullmatch("[0-9]{3}", str(value)) else None


def _reason(error: BaseException) -> BaseException:
    """What a driver met; fsspec calls whatever goes wrong with a first question a file that is not there."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def shown_cause(url: str, error: BaseException) -> BaseException | None:
    """The cause that a traceback may show: none where its text might hold the url's secrets."""
    return error if redact(url) == url else None
