"""A file server that behaves like a distant one: slow to answer, and slow on each connection.

It waits before every answer and limits the rate of each connection. `python -m benchmarks.far_server FOLDER
WAIT_SECONDS BYTES_A_SECOND` prints its port and serves until it is terminated.
"""

from __future__ import annotations

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_PIECE_BYTES = 1 << 18


class _Handler(BaseHTTPRequestHandler):
    """GET with ranges, and HEAD."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    wait_seconds = bytes_a_second = 0.0

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        time.sleep(self.wait_seconds)
        path = self.folder / self.path.strip("/")
        size = path.stat().st_size
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or size), size - 1)
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(end + 1 - start))
        self.send_header("Content-Range", f"bytes {start}-{end}/{size}")
        self.end_headers()
        if with_body:
            self._send(path, start, end + 1)

    def _send(self, path: Path, start: int, end: int) -> None:
        began = time.monotonic()
        with path.open("rb") as file:
            file.seek(start)
            for at in range(start, end, _PIECE_BYTES):
                piece = file.read(min(_PIECE_BYTES, end - at))
                self.wfile.write(piece)
                sent = at + len(piece) - start
                time.sleep(max(0.0, began + sent / self.bytes_a_second - time.monotonic()))

    def log_message(self, *args: Any) -> None:
        """Print nothing."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that disconnect."""


if __name__ == "__main__":
    _Handler.folder = Path(sys.argv[1])
    _Handler.wait_seconds, _Handler.bytes_a_second = float(sys.argv[2]), float(sys.argv[3])
    server = _Server(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
