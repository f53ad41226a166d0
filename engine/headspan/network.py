"""Sources over a network: their drivers, how they fail, and when to ask again.

What may pass (a server that is busy, a connection that broke) is tried again after longer and longer waits; what a
server has settled (no such file, no permission) is not. No error shows a url's secrets.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import fsspec

from headspan.errors import SourceError, one_line
from headspan.redact import redact

T = TypeVar("T")

# Waits before a network source is asked again.
RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
# A server that is silent for so long has failed; how long a whole tar takes is nobody's business.
_CONNECT_SECONDS, _SILENCE_SECONDS = 30.0, 60.0
# Answers of servers that another try does not change: all of 400 to 499 but these.
_ASK_AGAIN = (408, 425, 429)
# What file systems raise for a url that does not work; ImportError: no driver (s3fs, aiohttp).
LOCAL_ERRORS = (OSError, ValueError, ImportError)
# Errors of fsspec's drivers that are none of these; a driver that raises has been imported.
_DRIVER_ERRORS = (
    ("aiohttp", "ClientError"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("gcsfs.retry", "HttpError"),
)


class PassingError(SourceError):
    """A failure of a network source that another try may mend."""


def is_remote(url: str) -> bool:
    """Whether `url` is a `pipe:` command or has a scheme other than `file:`."""
    return url.startswith("pipe:") or ("://" in url and not url.startswith("file:"))


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's driver for `url`, and the path that it knows it by."""
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        # A driver that comes with an extra; where it is missing, fsspec says so below.
        with suppress(ImportError):
            from aiohttp import ClientTimeout

            waits = ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS)
            options = {"client_kwargs": {"timeout": waits}}
    found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
    return found


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


def remote_errors() -> tuple[type[Exception], ...]:
    # One that another thread is still importing has raised nothing, and may lack the name.
    found = (getattr(sys.modules.get(module), name, None) for module, name in _DRIVER_ERRORS)
    return (*LOCAL_ERRORS, *(error for error in found if error is not None))


def stream_errors() -> tuple[type[Exception], ...]:
    # A gzip stream that is cut off or damaged besides.
    return (*remote_errors(), EOFError, zlib.error)


def unreadable(url: str, error: Exception) -> SourceError:
    kind = PassingError if may_pass(url, error) else SourceError
    todo = "check the path, the connection and the permissions"
    if isinstance(error, ImportError):
        todo = "pip install 'headspan[remote]' has drivers for http, s3 and gs"
    return kind(f"{url}: cannot be read ({one_line(_reason(error))}); {todo}")


def may_pass(url: str, error: Exception) -> bool:
    """Whether a network source that failed so may answer when it is asked again."""
    if not is_remote(url) or url.startswith("pipe:"):
        return False
    error = _reason(error)
    # botocore has the answer's status in a dictionary, the other drivers as an attribute.
    metadata = getattr(error, "response", None)
    status = metadata.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(metadata, dict) else None
    status = status or getattr(error, "status", None) or getattr(error, "code", None)
    if str(status).isdigit() and 400 <= int(str(status)) < 500:
        return int(str(status)) in _ASK_AGAIN
    settled = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, ImportError)
    return not isinstance(error, settled)


def _reason(error: Exception) -> Exception:
    """What a driver met; fsspec calls whatever goes wrong with a first question a file that is not there."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def shown_cause(url: str, error: Exception) -> Exception | None:
    """The cause that a traceback may show: none where its text might hold the url's secrets."""
    return error if redact(url) == url else None
