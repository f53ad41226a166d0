"""Connect to buckets: clients from a URL and the environment, errors as sentences, and the server's clock.

Addresses are `s3://bucket/path`, `r2://bucket/path`, `gs://bucket/path` and `az://account/container/path`. Endpoints
and credentials come from the environment and the usual files alone, so that no address, store or message contains them.
"""

from __future__ import annotations

import errno
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from headspan.errors import StoreError, one_line, shortened
from headspan.redact import redact, users_of

# A request is repeated for this long with growing waits: throttling lasts for seconds, a server's restart for longer.
_RETRY = {
    "max_retries": 12,
    "retry_timeout": timedelta(seconds=150),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=15), "base": 2},
}
# A part of an upload must arrive in this time.
_TIMEOUTS = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=60)}
# Waits before a request is repeated that obstore does not repeat itself, such as after an answer that is cut off.
WAIT_SECONDS = (0.2, 1.0, 5.0)
_ENVIRONMENT = ("AWS_", "R2_", "GOOGLE_", "AZURE_")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


def client(url: str) -> Any:
    """Return obstore's client for the folder `url` of a bucket. Nothing is requested yet.

    Raises StoreError if the address names no bucket or contains secrets, or if the libraries are not installed.
    """
    parts = urlsplit(url)
    if users_of(url) or parts.query or parts.fragment:
        raise StoreError(
            f"{redact(url)}: an address of a bucket holds no user, password or query; credentials come from the "
            "environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if not parts.netloc or not parts.path.strip("/"):
        raise StoreError(f"{url}: names no folder in a bucket; write {parts.scheme}://bucket/run.zarr")
    known = tuple(sorted((key, value) for key, value in os.environ.items() if key.startswith(_ENVIRONMENT)))
    return _client(url, os.getpid(), known)


@lru_cache(maxsize=64)
def _client(url: str, process: int, environment: tuple[tuple[str, str], ...]) -> Any:
    try:
        from obstore.store import AzureStore, GCSStore, S3Store
    except ImportError as error:
        raise StoreError(
            f"{url}: stores in buckets need the package obstore; pip install 'headspan[remote]'"
        ) from error
    parts = urlsplit(url)
    options: dict[str, Any] = {"retry_config": _RETRY, "client_options": dict(_TIMEOUTS)}
    try:
        if parts.scheme == "gs":
            return GCSStore.from_url(url, **options)
        if parts.scheme == "az":
            return AzureStore.from_url(url, **options)
        if (address := endpoint(url)).startswith("http://"):
            options["client_options"]["allow_http"] = True
        options["config"] = {"region": region(url), **({"endpoint": address} if parts.scheme == "r2" else {})}
        return S3Store(parts.netloc, prefix=parts.path.strip("/"), **options, **_credentials(url))
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"{url}: the settings of this bucket in the environment are not usable ({reason(error)}); correct them"
        ) from None


def endpoint(url: str) -> str:
    """Return the address of the server that has the bucket of `url`, without secrets."""
    scheme, bucket = urlsplit(url).scheme, urlsplit(url).netloc
    if scheme == "gs":
        return "https://storage.googleapis.com"
    if scheme == "az":
        return os.environ.get("AZURE_STORAGE_ENDPOINT") or f"https://{bucket}.blob.core.windows.net"
    for name in _ENDPOINTS:
        if address := os.environ.get(name):
            return address.rstrip("/")
    if scheme == "r2":
        account = os.environ.get("R2_ACCOUNT_ID")
        if not account:
            raise StoreError(f"{url}: the account of this bucket is not known; set R2_ACCOUNT_ID or AWS_ENDPOINT_URL")
        return f"https://{account}.r2.cloudflarestorage.com"
    return f"https://s3.{region(url)}.amazonaws.com"


def region(url: str) -> str:
    """Return the region of a bucket of S3 or R2."""
    named = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not named and (session := _aws_session()) is not None:
        named = session.get_config_variable("region")
    return "auto" if urlsplit(url).scheme == "r2" else str(named or "us-east-1")


def aws_keys() -> Any:
    """Return the credentials for S3 as botocore finds them in the environment, files and services; None without."""
    session = None if os.environ.get("AWS_SKIP_SIGNATURE") else _aws_session()
    return None if session is None else session.get_credentials()


def _aws_session() -> Any:
    """Return botocore's session, which knows the usual files and services; None without botocore."""
    try:
        from botocore.session import Session
    except ImportError:
        return None
    return Session()


def _credentials(url: str) -> dict[str, Any]:
    """Return the argument that gives a client its credentials, if obstore does not find them in the environment."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_SKIP_SIGNATURE") or _aws_session() is None:
        return {}
    if (found := aws_keys()) is None:
        raise StoreError(
            f"{url}: no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile "
            "with AWS_PROFILE"
        )

    def provide() -> dict[str, Any]:
        # botocore renews credentials that expire soon.
        frozen, soon = found.get_frozen_credentials(), datetime.now(UTC) + timedelta(minutes=5)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": soon if frozen.token else None,
        }

    return {"credential_provider": provide}


@contextmanager
def refusals(url: str, key: str, what: str) -> Iterator[None]:
    """Turn an error of obstore into a StoreError that says that `key` in the bucket cannot be `what`.

    FileNotFoundError passes if the bucket exists. The cause of the StoreError is an OSError, as for local files.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, StoreError):
            raise
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{url}/{key}") from None
        number, sentence = _explained(url, key, what, error)
        raise StoreError(sentence) from OSError(number, reason(error))


def _explained(url: str, key: str, what: str, error: Exception) -> tuple[int, str]:
    text, bucket, place = str(error), urlsplit(url).netloc, f"{url}/{key}" if key else url
    why, server = reason(error), redact(endpoint(url))
    if "NoSuchBucket" in text or "ContainerNotFound" in text:
        return errno.ENOENT, (
            f"{url}: there is no bucket {bucket} at {server}; create it, or correct the address or the endpoint "
            "(AWS_ENDPOINT_URL)"
        )
    if "169.254.169.254" in text or "metadata.google.internal" in text:
        return errno.EACCES, (
            f"{url}: no credentials were found; set those of the bucket's provider in the environment, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or "status code: 403" in text:
        return errno.EACCES, (
            f"{place}: cannot be {what} (the server refuses: {why}); check the credentials, and the rights that they "
            f"have on the bucket {bucket}"
        )
    if "error sending request" in text and "status code" not in text:
        return errno.EHOSTUNREACH, (
            f"{url}: the server {server} cannot be reached ({why}); check the endpoint (AWS_ENDPOINT_URL) and the "
            "connection, and run the same command to continue"
        )
    return errno.EIO, f"{place}: cannot be {what} ({why}); run the same command to continue"


def reason(error: BaseException) -> str:
    """Return what an error of obstore says, without addresses, keys and the rest of the server's answer."""
    text = str(error)
    # Of the answer only the code and the message: a refused signature comes with the key and what was signed.
    parts = [found[1] for tag in ("Code", "Message") if (found := re.search(f"<{tag}>([^<]*)</{tag}>", text))]
    if not parts and (status := re.search(r"status code: (\d{3}[\w ]*)", text)):
        parts = [status[1].strip()]
    if not parts:
        first = text.partition("Debug source")[0]
        parts = [re.sub(r"https?://\S+", "…", one_line(Exception(first)))]
    return shortened(redact(": ".join(one_line(Exception(part)) for part in parts)), 200)


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed when it is repeated."""
    text = str(error)
    # obstore's file objects raise an OSError without a number instead of obstore's own errors.
    generic = type(error) is OSError and error.errno is None and text.startswith("Generic ")
    if type(error).__name__ not in ("GenericError", "JoinError") and not generic:
        return False
    status = re.search(r"status code: (\d)", text)
    return status is None or status[1] == "5"


def server_time(url: str) -> float | None:
    """Return the time of the server's clock, in whole seconds, from the header of an unsigned answer; None without."""
    request = urllib.request.Request(endpoint(url), method="HEAD")
    date: str | None = None
    # Every answer has the date, refusals too.
    with suppress(OSError, ValueError, HTTPException):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                date = answer.headers.get("Date")
        except urllib.error.HTTPError as answer:
            date = answer.headers.get("Date")
    return parsedate_to_datetime(date).timestamp() if date else None


class ServerClock:
    """The clock of the server of `url`, asked once in ten minutes and otherwise counted on."""

    _SECONDS = 600.0

    def __init__(self, url: str) -> None:
        self._url = url
        self._asked: float | None = None
        self._time = 0.0

    def now(self) -> float:
        """Return the server's time. Raises StoreError if the server does not tell it."""
        if self._asked is None or time.monotonic() - self._asked > self._SECONDS:
            found = server_time(self._url)
            for seconds in WAIT_SECONDS:
                if found is None:
                    time.sleep(seconds)
                    found = server_time(self._url)
            if found is None:
                raise StoreError(
                    f"{self._url}: the server {redact(endpoint(self._url))} does not tell its time; check the endpoint "
                    "(AWS_ENDPOINT_URL) and the connection"
                )
            self._asked, self._time = time.monotonic(), found
        return self._time + time.monotonic() - self._asked
