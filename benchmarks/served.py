"""A server process of the explorer: start it, ask it, and read what the system says about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

_WAIT_SECONDS = 60.0
# Part of the command line of a searching process.
_SEARCHING = b"headspan.web.searches.worker"


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
    def own_bytes(self) -> int:
        """Resident memory of the server and its searching processes that belongs to no file of a disk.

        What several processes share, such as sketches, counts once: each counts its share of it.
        """
        return sum(_own_bytes(pid) for pid in self._pids())

    @property
    def processor_seconds(self) -> float:
        """Processor time of all threads, and of the searching processes."""
        return sum(_processor_seconds(pid) for pid in self._pids())

    @property
    def has_torch(self) -> bool:
        """Whether a library of torch is mapped."""
        return "libtorch" in Path(f"/proc/{self.process.pid}/maps").read_text(encoding="utf-8")

    def _pids(self) -> list[int]:
        """The server, and its searching processes."""
        found = [self.process.pid]
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            # A process may end meanwhile.
            with suppress(OSError):
                status = (path.parent / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
                if int(status[1]) == self.process.pid and _SEARCHING in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

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


def _processor_seconds(pid: int) -> float:
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    user, system = status.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _own_bytes(pid: int) -> int:
    """The process's memory that belongs to no file, and its share of memory that processes share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    sizes = dict(line.split()[:2] for line in lines)
    return sum(int(sizes[name]) for name in ("Pss_Anon:", "Pss_Shmem:")) << 10


def _until_ready(process: subprocess.Popen[bytes], port: int) -> float:
    end = time.perf_counter() + _WAIT_SECONDS
    while time.perf_counter() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status").read()
            return time.perf_counter()
        except URLError:
            time.sleep(0.01)
    raise TimeoutError(f"no explorer answers at port {port}")
