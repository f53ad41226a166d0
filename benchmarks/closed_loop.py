"""Send HTTP requests from a number of clients, each of which sends its next one when the last one is answered.

`python -m benchmarks.closed_loop PORT CLIENTS` reads a JSON list of paths from standard input and writes a JSON object:
seconds, status and bytes of each answer in the order of the paths, the seconds of all, and the processor time of the
clients. Connections stay open. It imports nothing but the standard library, so that it takes little of the processor
time that it measures.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What `paths` were answered with, in their order."""

    seconds: list[float]
    statuses: list[int]
    bytes: list[int]
    # From the first request to the last answer, and processor time of the clients.
    all_seconds: float
    client_seconds: float


def closed_loop(port: int, paths: Sequence[str], clients: int) -> Load:
    """Request `paths` from the server at `port`, from a process of its own."""
    command = [sys.executable, "-I", __file__, str(port), str(clients)]
    done = subprocess.run(command, input=json.dumps(list(paths)), capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


async def _run(port: int, paths: Sequence[str], clients: int) -> dict[str, object]:
    answers: list[tuple[float, int, int]] = [(0.0, 0, 0)] * len(paths)
    numbers = iter(range(len(paths)))
    began = time.perf_counter()
    await asyncio.gather(*(_client(port, paths, numbers, answers) for _ in range(clients)))
    seconds, statuses, sizes = (list(column) for column in zip(*answers, strict=True)) if answers else ([], [], [])
    return {
        "seconds": seconds,
        "statuses": statuses,
        "bytes": sizes,
        "all_seconds": time.perf_counter() - began,
        "client_seconds": time.process_time(),
    }


async def _client(
    port: int, paths: Sequence[str], numbers: Iterator[int], answers: list[tuple[float, int, int]]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for number in numbers:
        began = time.perf_counter()
        writer.write(f"GET {paths[number]} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        status, *fields = head.decode("latin-1").split("\r\n")
        length = next(int(field[15:]) for field in fields if field.lower().startswith("content-length:"))
        await reader.readexactly(length)
        answers[number] = time.perf_counter() - began, int(status.split()[1]), length
    writer.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_run(int(sys.argv[1]), json.load(sys.stdin), int(sys.argv[2])))))
