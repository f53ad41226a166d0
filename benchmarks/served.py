"""A server process of the explorer: start it, ask it, and read what the system says about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    port: int
    # From the start of the process to its first answer.
    ready_seconds: float

    def get(self, path: str) -> bytes:
        """The body of an answer. Raises HTTPError for one of a status from 400."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            body: bytes = answer.read()
        return body

    def post(self, path: str, body: bytes) -> Any:
        """The JSON answer to a body."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method="POST")
        with urllib.request.urlopen(asked) as answer:
            return json.loads(answer.read())

    @property
    def anonymous_bytes(self) -> int:
        """Resident memory that belongs to no file."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon:"))

    @property
    def processor_seconds(self) -> float:
        """Processor time of all threads."""
        status = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
        user, system = status.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @property
    def has_torch(self) -> bool:
        """Whether a library of torch is mapped."""
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text(encoding="utf-8")

    def wait_until_idle(self, most_seconds: float) -> float:
        """Wait until the process computes nothing, as when it has built its sketches; returns the seconds."""
        began = before = time.perf_counter()
        used = self.processor_seconds
        while time.perf_counter() - began < most_seconds:
            time.sleep(1)
            now, using = time.perf_counter(), self.processor_seconds
            if using - used < 0.05 * (now - before):
                break
            before, used = now, using
        return time.perf_counter() - began


@contextmanager
def served(stores: Sequence[Path], port: int) -> Iterator[Served]:
    """Serve stores with `headspan explore` in a process of its own."""
    command = [sys.executable, "-m", "headspan", "explore", *map(str, stores), "--port", str(port)]
    began = time.perf_counter()
    # Modules are compiled once, as an installation does.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        yield Served(process, port, _until_ready(process, port) - began)
    finally:
        process.terminate()
        process.wait(30)


def _until_ready(process: subprocess.Popen[bytes], port: int) -> float:
    end = time.perf_counter() + _WAIT_SECONDS
    while time.perf_counter() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status").read()
            return time.perf_counter()
        except URLError:
            time.sleep(0.01)
    raise TimeoutError(f"no explorer answers at port {port}")
