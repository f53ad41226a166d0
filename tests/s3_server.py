"""A server of S3 on this machine: moto's, behind faults that a test injects, as a busy or broken network makes them.

moto checks the condition of a put and writes in two steps, and says of every upload that it began in 2010; both are
corrected here. `serving` also sets the environment in which obstore and headspan find the server.
"""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

BUCKET = "bucket"
KEY_ID, SECRET = "AKIATESTTESTTESTTEST", "s3cret/of+the/bucket"
_BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a test sees it: `create`, `put`, `copy`, `part`, `begin`, `complete`, `abort`, … and the key."""

    kind: str
    key: str


# What happens to a request: "busy", "denied", "lost" (done, but not answered), "cut" (not done), "half" (the answer
# ends too early), seconds that it waits, an event that it waits for before it is done, or None.
Fault = str | float | threading.Event | None


@dataclass
class Faults:
    """What the server does to requests, and what it counts."""

    fault: Callable[[Request], Fault] = lambda request: None
    # Whether puts may have a condition; servers without them ignore it.
    conditional: bool = True
    # Seconds by which the server's clock is ahead.
    ahead: float = 0.0
    counted: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    # The latest requests, each with its fault and the status of its answer.
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=60))


class _Application:
    """A WSGI application that passes requests on to moto."""

    def __init__(self, moto: Callable[..., Iterable[bytes]], faults: Faults) -> None:
        self._moto, self._faults = moto, faults
        self._one_by_one = threading.Lock()
        self._begun: dict[str, float] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        request, faults = _request(environ), self._faults
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        fault = faults.fault(request)
        faults.counted[request.kind] += 1
        faults.recent.append(f"{request.kind} {request.key[-60:]} {fault or ''}")
        if fault is not None:
            faults.injected[fault if isinstance(fault, str) else "slow"] += 1
        if isinstance(fault, threading.Event):
            fault.wait(60)
        elif isinstance(fault, float):
            time.sleep(fault)
        if fault == "busy":
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_BUSY]
        if fault == "denied":
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [_DENIED]
        if fault == "cut":
            return _cut(environ)
        if not faults.conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        answer: list[Any] = []
        if "HTTP_IF_NONE_MATCH" in environ or request.kind == "complete":
            with self._one_by_one:
                data = b"".join(self._moto(environ, lambda *line: answer.extend(line)))
        else:
            data = b"".join(self._moto(environ, lambda *line: answer.extend(line)))
        if fault == "lost":
            return _cut(environ)
        if not answer[0].startswith("20"):
            faults.recent.append(f"{request.kind} {request.key[-60:]} answered {answer[0]}")
        status, headers = answer[0], [line for line in answer[1] if line[0].lower() != "date"]
        data = self._with_times(request, data)
        if fault == "half" and len(data) > 1:
            start_response(status, headers)
            return [data[: len(data) // 2]]
        if environ["REQUEST_METHOD"] != "HEAD":
            headers = [(name, str(len(data)) if name.lower() == "content-length" else v) for name, v in headers]
        start_response(status, headers)
        return [data]

    def _with_times(self, request: Request, data: bytes) -> bytes:
        if request.kind == "begin" and (found := re.search(rb"<UploadId>([^<]+)<", data)):
            self._begun[found[1].decode()] = time.time() + self._faults.ahead
        if request.kind == "uploads":
            parts = re.split(rb"(?=<Upload>)", data)
            for number, part in enumerate(parts):
                if found := re.search(rb"<UploadId>([^<]+)<", part):
                    began = _iso(self._begun.get(found[1].decode(), 0.0))
                    parts[number] = re.sub(rb"<Initiated>[^<]*<", b"<Initiated>" + began + b"<", part)
            return b"".join(parts)
        return data


def _iso(seconds: float) -> bytes:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds)).encode()


def _request(environ: dict[str, Any]) -> Request:
    method, query = environ["REQUEST_METHOD"], parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
    key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}").lstrip("/")
    if method == "PUT":
        kind = "part" if "partNumber" in query else "copy" if "HTTP_X_AMZ_COPY_SOURCE" in environ else "put"
        kind = "create" if "HTTP_IF_NONE_MATCH" in environ else kind
    elif method == "POST":
        kind = "delete" if "delete" in query else "begin" if "uploads" in query else "complete"
    elif method == "GET":
        kind = "uploads" if "uploads" in query else "get" if key else "list"
    else:
        kind = {"DELETE": "abort" if "uploadId" in query else "delete", "HEAD": "head"}[method]
    return Request(kind, key)


def _cut(environ: dict[str, Any]) -> Iterable[bytes]:
    """End the connection without an answer."""
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError("cut by the test")


class Server:
    """The running server; `faults` may be changed at any time."""

    def __init__(self, address: str, faults: Faults, moto: Any) -> None:
        self.address, self.faults, self._moto = address, faults, moto

    def clear(self) -> None:
        """Delete everything in the bucket, and end all faults."""
        self._moto.buckets[BUCKET].keys.clear()
        self._moto.buckets[BUCKET].multiparts.clear()
        # `faults` is also known to the application.
        self.faults.fault, self.faults.conditional, self.faults.ahead = lambda request: None, True, 0.0
        self.faults.counted.clear()
        self.faults.injected.clear()

    def keys(self, prefix: str = "") -> dict[str, bytes]:
        """The content of every object below a prefix, by what follows it; read past all faults."""
        bucket = self._moto.buckets[BUCKET].keys
        return {name.removeprefix(prefix): bucket[name].value for name in list(bucket) if name.startswith(prefix)}

    def hold(self, folder: Path) -> str:
        """Put every file of a folder into the bucket, below the folder's name; returns its address."""
        for path in folder.rglob("*"):
            if path.is_file():
                self._moto.put_object(BUCKET, str(path.relative_to(folder.parent)), path.read_bytes())
        return f"s3://{BUCKET}/{folder.name}"

    def delete(self, prefix: str) -> None:
        """Delete every object below a prefix. moto goes through all of the bucket's for each list."""
        for name in [name for name in self._moto.buckets[BUCKET].keys if name.startswith(prefix)]:
            self._moto.buckets[BUCKET].keys.pop(name)

    def uploads(self) -> list[str]:
        """The keys of unfinished uploads."""
        return [upload.key_name for upload in self._moto.buckets[BUCKET].multiparts.values()]


@contextmanager
def serving() -> Iterator[Server]:
    """Serve a bucket called BUCKET, with credentials and endpoint in the environment."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    faults = Faults()

    class Handler(MotoRequestHandler):  # type: ignore[misc]
        # Connections stay open between requests.
        protocol_version = "HTTP/1.1"

        def date_time_string(self, timestamp: float | None = None) -> str:
            return formatdate((timestamp or time.time()) + faults.ahead, usegmt=True)

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = _Application(DomainDispatcherApplication(create_backend_app), faults)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Handler)
    server.log = lambda *line: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, name="s3-server", daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    environment = {
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
    }
    moto = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    moto.create_bucket(BUCKET, "us-east-1")
    try:
        # Parts of an upload may be small, so that a toy has several.
        with (
            patch.dict(os.environ, environment),
            patch("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 64),
            patch(
                "moto.s3.models.utcnow",
                lambda: datetime.fromtimestamp(time.time() + faults.ahead, UTC).replace(tzinfo=None),
            ),
        ):
            yield Server(address, faults, moto)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        moto.reset()
