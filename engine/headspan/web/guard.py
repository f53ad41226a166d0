"""Refuse requests that no page of this server sends, and tell browsers what the server's pages may do.

A web site in the user's browser can send requests to 127.0.0.1, and with a name of its own that leads there (DNS
rebinding) it could read the answers. So the Host must be one that the user was told, a given Origin must be the same,
and the HTTP API answers no request that a browser marks as coming from another site. Bodies are counted while they
arrive, and only POST has one.
"""

from __future__ import annotations

import ipaddress
import traceback
from collections.abc import Collection
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headspan.escapes import escaped
from headspan.web.failures import failure
from headspan.web.state.uploads import LARGEST_BYTES

_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "manifest-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
API = "/api/"
_METHODS = ("GET", "HEAD", "POST")
# What `Sec-Fetch-Site` says of requests of the page itself, and of addresses that the user typed.
_OWN_SITE = ("same-origin", "none")
_UNEXPECTED = "headspan made a mistake while it answered; the terminal in which it runs shows the details"


# Stands for every IP address in the hosts that are accepted. Only names can be made to lead elsewhere.
ANY_ADDRESS = "(any IP address)"


class _TooLarge(Exception):
    """More of a body has arrived than is accepted."""


class Guard:
    """An application in front of another one, which gets only requests that are accepted."""

    def __init__(self, app: ASGIApp, hosts: Collection[str], most_bytes: int = LARGEST_BYTES) -> None:
        """`hosts` are the values of `Host` that are accepted, such as `localhost:8000` or `ANY_ADDRESS:8000`."""
        self._app, self._most_bytes = app, most_bytes
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, scope)
        if (refused := self._refusal(scope)) is not None:
            status, sentence = refused
            await failure(status, sentence)(scope, receive, answer.send)
            return
        if scope["method"] == "HEAD" and scope["path"].startswith(API):
            scope = {**scope, "method": "GET"}
        try:
            await self._app(scope, self._counted(receive), answer.send)
        except _TooLarge:
            await failure(413, self._too_large())(scope, receive, answer.send)
        except Exception as error:
            traceback.print_exception(error)
            if answer.started:
                raise
            await failure(500, _UNEXPECTED, "mistake")(scope, receive, answer.send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence for a request that is refused."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self._hosts and _without_address(host) not in self._hosts:
            return 421, (
                f"the request is for the host {escaped(host)[:100]!r}, but the explorer answers only for "
                f"{', '.join(sorted(self._hosts))}; open one of these, or start it with --allow-host"
            )
        if origin is not None and urlsplit(origin.lower()).netloc != host:
            return (
                403,
                f"the request comes from a page of {escaped(origin)[:100]!r}; only the explorer's own may ask",
            )
        site = headers.get("sec-fetch-site", "none")
        if scope["path"].startswith(API) and site not in _OWN_SITE:
            return 403, "the request comes from a page of another site; only the explorer's own may ask"
        if scope["method"] not in _METHODS:
            return 405, f"the explorer accepts {', '.join(_METHODS)}, not {escaped(scope['method'])[:20]}"
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()):
            return 400, f"the Content-Length {escaped(length)[:20]!r} is not a number"
        if int(length) > self._most_bytes:
            return 413, self._too_large()
        return None

    def _counted(self, receive: Receive) -> Receive:
        received = 0

        async def counting() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._most_bytes:
                    raise _TooLarge
            return message

        return counting

    def _too_large(self) -> str:
        return f"the file is larger than {self._most_bytes >> 20} MB; make it smaller"


def _without_address(host: str) -> str:
    """`host` with `ANY_ADDRESS` in place of an IP address."""
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    try:
        ipaddress.ip_address((name if colon else host).strip("[]"))
    except ValueError:
        return host
    return f"{ANY_ADDRESS}{colon}{port}"


class _Answer:
    """Adds the headers to an answer, and leaves out the body that a HEAD request must not have."""

    def __init__(self, send: Send, scope: Scope) -> None:
        self._send, self._bodiless = send, scope["method"] == "HEAD"
        self._is_api = scope["path"].startswith(API)
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if self._is_api:
                headers.setdefault("Cache-Control", "no-store")
            headers["Server"] = "headspan"
            if message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body" and self._bodiless:
            message = {**message, "body": b""}
        await self._send(message)
