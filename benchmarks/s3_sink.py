"""A server of S3 for benchmarks that counts what it is sent and discards it, since moto takes longer than any client.

Objects up to 8 MiB are kept, so that a store's records can be read again; of larger ones, their sizes. Signatures
are not checked. `python -m benchmarks.s3_sink` prints its port and serves until it is terminated.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_KEPT_BYTES = 8 << 20
_TAG = '"0123456789abcdef0123456789abcdef"'
_TIME = formatdate(usegmt=True)


@dataclass(slots=True)
class _Request:
    method: str
    key: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    size: int
    # The beginning of the body.
    body: bytearray = field(default_factory=bytearray)
    received: int = 0


class _Objects:
    """The objects of the bucket: the size of each, and its content, or None for content that is too large to keep."""

    def __init__(self) -> None:
        self._all: dict[str, tuple[int, bytes | None]] = {}
        self._uploads: dict[str, int] = {}
        self._begun = 0

    def answer(self, request: _Request) -> tuple[str, Iterable[tuple[str, str]], bytes]:
        """The status, headers and body of the answer."""
        key, query = request.key, request.query
        if request.method == "POST" and "delete" in query:
            names = re.findall(rb"<Key>([^<]*)</Key>", bytes(request.body))
            for name in names:
                self._all.pop(name.decode(), None)
            found = b"".join(b"<Deleted><Key>" + name + b"</Key></Deleted>" for name in names)
            return "200 OK", (), b"<DeleteResult>" + found + b"</DeleteResult>"
        if request.method == "POST" and "uploads" in query:
            self._begun += 1
            upload = str(self._begun)
            self._uploads[upload] = 0
            return "200 OK", (), _xml("InitiateMultipartUploadResult", Bucket="b", Key=key, UploadId=upload)
        if request.method == "POST":
            self._all[key] = self._uploads.pop(query["uploadId"][0]), None
            return "200 OK", (), _xml("CompleteMultipartUploadResult", Bucket="b", Key=key, ETag=_TAG)
        if request.method == "PUT":
            return self._put(request)
        if request.method == "DELETE":
            self._all.pop(key, None)
            return "204 No Content", (), b""
        if not key:
            prefix = query.get("prefix", [""])[0]
            listed = (
                _xml("Contents", Key=name, LastModified="2026-01-01T00:00:00.000Z", ETag=_TAG, Size=str(size))
                for name, (size, _) in sorted(self._all.items())
                if name.startswith(prefix)
            )
            return (
                "200 OK",
                (),
                b"<ListBucketResult><IsTruncated>false</IsTruncated>" + b"".join(listed) + (b"</ListBucketResult>"),
            )
        if key not in self._all:
            return "404 Not Found", (), _xml("Error", Code="NoSuchKey", Message="none")
        size, content = self._all[key]
        headers: tuple[tuple[str, str], ...] = (("Last-Modified", _TIME), ("ETag", _TAG))
        if request.method == "HEAD":
            return "200 OK", (*headers, ("Content-Length", str(size))), b""
        data = content if content is not None else bytes(size)
        if "range" in request.headers:
            first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
            last = min(last, size - 1)
            headers = (*headers, ("Content-Range", f"bytes {first}-{last}/{size}"))
            return "206 Partial Content", headers, data[first : last + 1]
        return "200 OK", headers, data

    def _put(self, request: _Request) -> tuple[str, Iterable[tuple[str, str]], bytes]:
        key, headers = request.key, request.headers
        if "partNumber" in request.query:
            self._uploads[request.query["uploadId"][0]] += request.received
            return "200 OK", (("ETag", _TAG),), b""
        if "if-none-match" in headers and key in self._all:
            return "412 Precondition Failed", (), _xml("Error", Code="PreconditionFailed", Message="exists")
        if source := headers.get("x-amz-copy-source"):
            name = unquote(source).lstrip("/").partition("/")[2]
            if name not in self._all:
                return "404 Not Found", (), _xml("Error", Code="NoSuchKey", Message="none")
            self._all[key] = self._all[name]
            return "200 OK", (), _xml("CopyObjectResult", ETag=_TAG, LastModified="2026-01-01T00:00:00.000Z")
        kept = bytes(request.body) if request.size <= _KEPT_BYTES else None
        self._all[key] = request.size, kept
        return "200 OK", (("ETag", _TAG),), b""


class _Connection(asyncio.Protocol):
    """Reads requests one after the other, and discards the bodies of large ones as they arrive."""

    def __init__(self, objects: _Objects) -> None:
        self._objects = objects
        self._head = bytearray()
        self._request: _Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        while data:
            if self._request is None:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                data = bytes(self._head[end + 4 :])
                self._request = _parsed(bytes(self._head[:end]))
                self._head.clear()
            request = self._request
            missing = request.size - request.received
            part, data = data[:missing], data[missing:]
            if request.size <= _KEPT_BYTES:
                request.body += part
            request.received += len(part)
            if request.received < request.size:
                return
            self._request = None
            self._reply(*self._objects.answer(request))

    def _reply(self, status: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        lines = dict(headers)
        lines.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in {"Date": formatdate(usegmt=True), **lines}.items())
        self._transport.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


def _parsed(head: bytes) -> _Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, address, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    place = urlsplit(address)
    key = unquote(place.path).lstrip("/").partition("/")[2]
    return _Request(method, key, parse_qs(place.query, True), headers, int(headers.get("content-length", 0)))


def _xml(tag: str, **values: str) -> bytes:
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())
    return f"<{tag}>{inner}</{tag}>".encode()


async def _serve() -> None:
    objects = _Objects()
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(objects), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
