"""How fast are shards planned, and how fast are they read from a distant server?

Planning a local tar of images with captions, in one core's time, against Python's tarfile doing the same. Then the same
tar from a server that waits before every answer and limits the bytes per second of each connection: planned, and read
member by member, against two peers that read it from front to back: one streaming GET (aiohttp), and obstore with as
many blocks of the same size in flight as headspan has. The server is a process on this machine, so it shares the cores
with the reader; its wait and rate are chosen, and named in the line.
"""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import obstore
from obstore.store import HTTPStore

from benchmarks.measure import alternate, benchmark, median
from headspan.io.ranges import AHEAD, BLOCK_BYTES
from headspan.shards.describe import describe
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage, Sample
from headspan.shards.sources import open_shard

QUESTION = "shards, planned and read from a distant server"
DUE_TO = (
    "Planning computes header checksums by Adler-32, and creates no Python object for members that are not needed. The "
    "server limits each connection, so reading is as fast as its number of connections allows; obstore with as many "
    "connections shows the rest."
)
_WAIT_SECONDS, _BYTES_A_SECOND = 0.03, 60e6
# Sizes of images as LAION's are, 60 kB on average.
_IMAGE_BYTES = (20_000, 100_000)
_CAPTION = b"a dog on the red sofa near two people, an old photo"


def run(toy: bool) -> dict[str, Any]:
    """Images a second of the plan, megabytes a second over the network, and the same for the peers."""
    images, rounds = (20, 1) if toy else (5_000, 7)
    with tempfile.TemporaryDirectory() as name:
        tar = Path(name) / "shard.tar"
        _write(tar, images)
        size = tar.stat().st_size
        plan_seconds, tarfile_seconds = (
            min(_processor_seconds(work) for _ in range(rounds))
            for work in (lambda: _plan(str(tar)), lambda: _walk(tar))
        )
        samples = _plan(str(tar))
        with _served(tar.parent) as address:
            url = f"{address}/{tar.name}"
            # The first request imports the driver.
            describe(url)
            found: dict[str, Callable[[], object]] = {
                "far_plan": lambda: _plan(url),
                "far_read": lambda: _read(url, samples),
                "far_stream": lambda: asyncio.run(_stream(url, size)),
                "far_obstore": lambda: asyncio.run(_read_obstore(address, tar.name, size)),
            }
            times = alternate(found, repeats=1 if toy else 3, warmup=0)
            far = {f"{key}_mb_s": round(size / median(taken) / 1e6, 1) for key, taken in times.items()}
    return {
        "images": images,
        "megabytes": round(size / 1e6, 1),
        "plan_images_a_second": round(images / plan_seconds),
        "tarfile_images_a_second": round(images / tarfile_seconds),
        "wait_seconds": _WAIT_SECONDS,
        "connection_mb_s": _BYTES_A_SECOND / 1e6,
        "connections": AHEAD + 1,
        **far,
    }


def _write(path: Path, images: int) -> None:
    random = np.random.default_rng(0)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(images):
            for extension, data in (("jpg", random.bytes(int(random.integers(*_IMAGE_BYTES)))), ("txt", _CAPTION)):
                member = tarfile.TarInfo(f"{number:08d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def _plan(url: str) -> list[Sample]:
    def refuse(note: BadImage) -> None:
        raise AssertionError(note)

    return scan(url, 0, refuse)[1]


def _walk(path: Path) -> list[tuple[str, int, int, str]]:
    """What a plan finds, by tarfile: names, places and captions."""
    found, captions = [], {}
    with tarfile.open(path) as tar:
        for member in tar:
            stem, _, extension = member.name.rpartition(".")
            if extension == "txt":
                file = tar.extractfile(member)
                assert file is not None
                captions[stem] = file.read().decode()
            else:
                found.append((stem, member.offset_data, member.size))
    return [(*image, captions[image[0]]) for image in found]


def _read(url: str, samples: list[Sample]) -> None:
    with open_shard(url) as shard:
        for sample in samples:
            shard.read_at(sample.offset, sample.size_bytes or 0)


async def _stream(url: str, size: int) -> None:
    """The whole tar by one GET."""
    seen = 0
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        async for piece in answer.content.iter_chunked(1 << 20):
            seen += len(piece)
    assert seen == size


async def _read_obstore(address: str, name: str, size: int) -> None:
    """The whole tar in blocks of headspan's size, as many in flight as headspan has."""
    store = HTTPStore.from_url(address, client_options={"allow_http": True})
    waiting = asyncio.Semaphore(AHEAD + 1)

    async def block(start: int) -> int:
        async with waiting:
            return len(await obstore.get_range_async(store, name, start=start, end=min(start + BLOCK_BYTES, size)))

    assert sum(await asyncio.gather(*map(block, range(0, size, BLOCK_BYTES)))) == size


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.far_server", str(folder), str(_WAIT_SECONDS), str(_BYTES_A_SECOND)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def _processor_seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """Rows for planning and for reading, headspan's and the peers'."""
    wait = f"{line['wait_seconds'] * 1e3:.0f} ms away, {line['connection_mb_s']:.0f} MB/s a connection"
    return [
        ["", "headspan", "peers"],
        [
            "planned by one core, captions read",
            f"{line['plan_images_a_second']:,} images/s",
            f"Python's tarfile: {line['tarfile_images_a_second']:,}",
        ],
        [f"planned from {wait}", f"{line['far_plan_mb_s']:.0f} MB/s", ""],
        [
            f"read from {wait}",
            f"{line['far_read_mb_s']:.0f} MB/s, {line['connections']} connections",
            f"one streaming GET: {line['far_stream_mb_s']:.0f}; obstore, {line['connections']} blocks at once: "
            f"{line['far_obstore_mb_s']:.0f}",
        ],
    ]


if __name__ == "__main__":
    benchmark(QUESTION, run)
