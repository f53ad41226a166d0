"""An HTTP server on loopback that serves chat completions, and fails on request.

It answers with a function of the prompt. A request may instead trigger the next of `mishaps`, in order.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-a-key-that-nobody-may-see"


class ChatServer:
    """The server's settings and what it received; `mishaps` are functions of a handler, or None for a normal reply."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], str] = lambda model, prompt: '{"label": "things", "associated": 1}'
        self.mishaps: list[Callable[[Handler], None] | None] = []
        # Handles every request that triggers no mishap, instead of a normal reply.
        self.always: Callable[[Handler], None] | None = None
        self.models: tuple[str, ...] | None = None
        self.key: str | None = None
        self.unknown_parameters: tuple[str, ...] = ()
        self.usage: dict[str, int] | None = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
        self.delay_seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.busy = self.busiest = 0
        self.lock = threading.Lock()
        self.url = ""

    def prompts(self) -> list[str]:
        """The first message of every request, in order of arrival."""
        return [request["messages"][0]["content"] for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    asked: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        chat = self.server.chat
        body = self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with chat.lock:
            chat.requests.append(body)
            chat.times.append(time.monotonic())
            mishap = chat.mishaps.pop(0) if chat.mishaps else chat.always
            chat.busy += 1
            chat.busiest = max(chat.busiest, chat.busy)
        try:
            if mishap is not None:
                mishap(self)
            else:
                self.ordinary(body)
        finally:
            with chat.lock:
                chat.busy -= 1

    def ordinary(self, body: dict[str, Any]) -> None:
        """The reply of a server that works."""
        chat = self.server.chat
        time.sleep(chat.delay_seconds)
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"detail": "Not Found"})
        if chat.key is not None and self.headers["Authorization"] != f"Bearer {chat.key}":
            # Some servers echo the key.
            return self.fail(401, f"Incorrect API key provided: {self.headers['Authorization']}", "invalid_api_key")
        if chat.models is not None and body["model"] not in chat.models:
            return self.fail(404, f"The model `{body['model']}` does not exist", "model_not_found")
        for name in chat.unknown_parameters:
            if name in body:
                return self.fail(400, f"Unsupported parameter: '{name}' is not supported with this model.", None)
        return self.complete(chat.answer(body["model"], body["messages"][0]["content"]))

    def complete(self, content: str | None, finish_reason: str = "stop", **message: Any) -> None:
        """A chat completion."""
        chat = self.server.chat
        choice = {
            "index": 0,
            "finish_reason": finish_reason,
            "message": {"role": "assistant", "content": content, **message},
        }
        usage = {} if chat.usage is None else {"usage": chat.usage}
        # The model of this connection's request, since other requests may have arrived.
        model = f"{self.asked['model']}-0613"
        self.reply(200, {"id": "x", "object": "chat.completion", "model": model, "choices": [choice], **usage})

    def fail(self, status: int, message: str, code: str | None, **headers: str) -> None:
        """An error as OpenAI words it."""
        self.reply(status, {"error": {"message": message, "type": "error", "param": None, "code": code}}, **headers)

    def reply(self, status: int, body: object, **headers: str) -> None:
        """Any JSON."""
        self.raw(status, json.dumps(body).encode(), "application/json", **headers)

    def raw(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        """Any bytes."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def cut(self, reset: bool) -> None:
        """End the connection: within the reply, or with a reset before it."""
        if reset:
            # A linger time of zero makes the client see a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"choi')
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


class Server(ThreadingHTTPServer):
    """Gives its handlers access to the chat."""

    daemon_threads = True

    def __init__(self, chat: ChatServer) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.chat = chat

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A running server."""
    chat = ChatServer()
    with Server(chat) as server:
        chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield chat
        finally:
            server.shutdown()
            thread.join()
