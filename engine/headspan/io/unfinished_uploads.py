"""List and end uploads that killed processes left unfinished in a bucket of S3, R2 or a compatible server.

Such uploads are no objects, but their parts are stored and paid for. obstore cannot list them, so botocore signs these
two requests. Other providers delete unfinished uploads themselves.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from http.client import HTTPException
from urllib.parse import quote, urlencode, urlsplit
from xml.etree import ElementTree

from headspan.io.buckets import aws_keys, endpoint, region

_SECONDS = 60.0
# Servers may be busy, and answers cut, so a request is repeated after so many seconds, as obstore repeats its own.
_WAIT_SECONDS = (0.1, 0.5)
_XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"


def unfinished_uploads(url: str) -> Iterator[tuple[str, str, float]]:
    """List uploads to files of the store at `url`: the key, the upload, and when it began.

    Lists nothing if the provider has no such uploads, botocore is not installed, or this user may not list them.
    """
    if urlsplit(url).scheme not in ("s3", "r2"):
        return
    store = urlsplit(url).path.strip("/")
    query = {"uploads": "", "prefix": f"{store}/"}
    # Stops at an answer that cannot be read; the uploads then wait for another process, or the bucket's own rule.
    with suppress(OSError, ValueError, HTTPException, ElementTree.ParseError):
        while True:
            answer = ElementTree.fromstring(_asked(url, "GET", "", query))
            for found in answer.iter(f"{_XML}Upload"):
                key, upload, began = (found.findtext(f"{_XML}{name}", "") for name in ("Key", "UploadId", "Initiated"))
                yield key.removeprefix(f"{store}/"), upload, datetime.fromisoformat(began).timestamp()
            if answer.findtext(f"{_XML}IsTruncated") != "true":
                return
            query["key-marker"] = answer.findtext(f"{_XML}NextKeyMarker", "")
            query["upload-id-marker"] = answer.findtext(f"{_XML}NextUploadIdMarker", "")


def end_upload(url: str, key: str, upload: str) -> None:
    """Delete the parts of an unfinished upload, if this user may."""
    with suppress(OSError, ValueError, HTTPException):
        _asked(url, "DELETE", f"/{urlsplit(url).path.strip('/')}/{key}", {"uploadId": upload})


def _asked(url: str, method: str, path: str, query: dict[str, str]) -> bytes:
    """Return the server's answer. Raises OSError if it refuses, and if there is no way to sign the request."""
    keys = aws_keys()
    if keys is None:
        raise PermissionError("no credentials")
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    address = f"{endpoint(url)}/{urlsplit(url).netloc}{quote(path)}?{urlencode(query, quote_via=quote)}"
    request = AWSRequest(method, address)
    S3SigV4Auth(keys, "s3", region(url)).add_auth(request)
    signed = urllib.request.Request(address, headers=dict(request.headers.items()), method=method)
    for seconds in _WAIT_SECONDS:
        try:
            return _answer(signed)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise
        except (OSError, HTTPException):
            pass
        time.sleep(seconds)
    return _answer(signed)


def _answer(request: urllib.request.Request) -> bytes:
    with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
        content: bytes = answer.read()
    return content
