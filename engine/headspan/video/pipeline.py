"""Decode many videos at the same time, and give their encoded frames in the order of the videos."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from headspan.errors import counted
from headspan.shard_writer.encoded import encoded
from headspan.video.bytes import Copies, ReadableFile, opened
from headspan.video.captions import Described
from headspan.video.decode import Frames, Pixels, read_frames
from headspan.video.timeline import UnusableVideoError

# Videos in flight for each worker. Their encoded frames are in memory.
_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A video of the plan: its place there, the key of its frames, and the tar that they belong to."""

    place: int
    key: str
    tar: Path
    described: Described


def decoded(jobs: Iterable[Job], count: int, encode: str, workers: int) -> Iterator[tuple[Job, Frames | str]]:
    """Each job with its encoded frames, as pairs of extension and bytes, or with the reason why there are none.

    Decoders and encoders let other threads run, so threads use all cores. Raises SourceError if a source fails.
    """
    with Copies() as copies, ThreadPoolExecutor(workers, thread_name_prefix="headspan-video") as threads:
        waiting: deque[_Waiting] = deque()
        try:
            for job in jobs:
                while len(waiting) >= _IN_FLIGHT * workers:
                    yield waiting[0].job, waiting.popleft().future.result()
                copy = copies.of(job.described.video)
                waiting.append(_Waiting(job, copy, threads.submit(_frames, job, copy, count, encode)))
            while waiting:
                yield waiting[0].job, waiting.popleft().future.result()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
            for each in waiting:
                if each.copy is not None:
                    each.copy.close()


class _Waiting(NamedTuple):
    """A job in flight, with the copy of its video if there is one."""

    job: Job
    copy: ReadableFile | None
    future: Future[Frames | str]


def _frames(job: Job, copy: ReadableFile | None, count: int, encode: str) -> Frames | str:
    video = job.described.video
    if video.dead:
        return video.dead

    def take(pixels: Pixels) -> tuple[str, bytes]:
        return encoded(pixels, job.key, Path(), encode)

    try:
        with opened(video, copy) as file:
            if not file.seek(0, os.SEEK_END):
                return f"is empty: {counted(0, 'byte')}"
            return read_frames(file, count, take)
    except UnusableVideoError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
