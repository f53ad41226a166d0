"""How fast are shards planned, and how fast do they come from far away?

The plan of a local tar of images with captions, by one core's time, against Python's tarfile doing the same. Then the
same tar from a server that waits before every answer and gives a connection so many bytes a second, planned and read
member by member, against the file object of fsspec's driver, with its own reading ahead. The server is a process on
this machine; wait and rate are made up, and named in the line.
"""

from __future__ import annotations

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

import fsspec
import numpy as np

from benchmarks.measure import alternate, benchmark, median
from headspan.io.ranges import AHEAD
from headspan.shards.describe import describe
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage, Sample
from headspan.shards.sources import open_shard

QUESTION = "shards, planned and from far away"
_WAIT_SECONDS, _BYTES_A_SECOND = 0.03, 60e6
# Of an image as LAION's are, some 60 kB.
_IMAGE_BYTES = (20_000, 100_000)
_CAPTION = b"a dog on the red sofa near two people, an old photo"


def run(toy: bool) -> dict[str, Any]:
    """Images a second of the plan, megabytes a second over the network, and the same of the peers."""
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
            # The driver is imported with the first question.
            describe(url)
            found: dict[str, Callable[[], object]] = {
                "far_plan": lambda: _plan(url),
                "far_read": lambda: _read(url, samples),
                "far_read_fsspec": lambda: _read_fsspec(url, samples),
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
            shard.read_at(sample.offset, sample.size_bytes)


def _read_fsspec(url: str, samples: list[Sample]) -> None:
    with fsspec.open(url, "rb") as file:
        for sample in samples:
            file.seek(sample.offset)
            assert len(file.read(sample.size_bytes)) == sample.size_bytes


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


def words(line: Mapping[str, Any]) -> tuple[str, str]:
    """The README's cells: the rates, and what they are held against."""
    faster = line["far_read_mb_s"] / line["far_read_fsspec_mb_s"]
    return (
        f"{line['plan_images_a_second']:,} images/s planned by one core, captions read; from a server "
        f"{line['wait_seconds'] * 1e3:.0f} ms away planned at {line['far_plan_mb_s']:.0f} MB/s, read at "
        f"{line['far_read_mb_s']:.0f}",
        f"Python's tarfile: {line['tarfile_images_a_second']:,} images/s; fsspec's own file: "
        f"{line['far_read_fsspec_mb_s']:.0f} MB/s, {faster:.0f}× slower; {line['connections']} connections of "
        f"{line['connection_mb_s']:.0f} MB/s, server and reader on the same cores",
    )


if __name__ == "__main__":
    benchmark(QUESTION, run)
