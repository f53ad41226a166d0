"""Write frames of videos as WebDataset tars, which `precompute` reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.io.cores import cores
from headspan.io.files import write_atomically
from headspan.shard_writer.encoded import FORMATS
from headspan.shard_writer.rows import json_text
from headspan.shard_writer.tars import StagedTar
from headspan.user_paths import expand_user
from headspan.video.captions import describe
from headspan.video.decode import Frames
from headspan.video.pipeline import Job, decoded
from headspan.video.plan import alone, begin, keys_in, list_of_set_aside, plan
from headspan.video.pyav import import_av
from headspan.video.sources import find_videos

# Names that ask for a compressed tar.
_PACKED = (".gz", ".tgz", ".zst", ".tzst", ".bz2", ".xz")


@dataclass(frozen=True, slots=True)
class SetAside:
    """A video that could not be used, and the reason as the second half of a sentence."""

    video: str
    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class WrittenFrames:
    """What `write_frames` did."""

    # The tar or folder that was written, which `precompute` takes.
    path: str
    # Videos whose frames are there, and how many of them an earlier call wrote.
    videos: int
    earlier: int
    # Frames of each video.
    count: int
    # Videos that this call decoded and that have fewer frames than `count`; their last frame is repeated.
    short: int
    # Videos without a caption, among those whose frames are there.
    without_caption: int
    set_aside: tuple[SetAside, ...]
    # The file that lists `set_aside`; None if it is empty.
    listed_in: str | None


def write_frames(
    videos: str | Path | Sequence[str | Path],
    out: str | Path,
    count: int = 12,
    *,
    captions: str | Path | None = None,
    only: str | Path | None = None,
    encode: str = "jpeg",
    images_per_shard: int = 1000,
    workers: int | None = None,
    allow_pipe: bool = False,
    on_progress: Listener = ignore,
) -> WrittenFrames:
    """Write frames of videos as `KEY.000.jpg` and so on, with captions as `KEY.txt` and `KEY.json`. Needs PyAV.

    The frames are those at the middles of `count` equal spans of a video's duration. If a video has fewer frames, each
    is written once, and the last one again. `KEY.json` holds `video`, `count`, `duration` and `times` (seconds),
    `captions`, and what the video's own JSON companion held; `KEY.txt` holds the first caption. Videos that do not
    decode are listed in a file beside the tar, or in the folder. The same videos give the same bytes. A tar appears
    when it is complete; after an interruption, the same call keeps the tars of a folder and writes the others.

    Args:
        videos: Tars, folders of videos, or videos: paths, patterns or URLs. A video's caption may lie beside it, as
            `a.txt` (a caption a line) or `a.json` (under `captions` or `caption`) beside `a.mp4`.
        out: A tar to write, or a folder for several tars, which is new, empty, or of an interrupted call.
        count: Frames of a video.
        captions: A JSON file that maps names of videos to lists of captions, in place of the companions'.
        only: A text file of the names of the videos that are wanted, one a line.
        encode: `jpeg` (quality 95, colours at full resolution), `png` (without loss), or `webp`.
        images_per_shard: About how many images a tar of a folder holds. The frames of a video are in one tar.
        workers: Videos that are decoded at the same time; None for one per core.
        allow_pipe: Run tars that are `pipe:` commands.
        on_progress: Called with a `headspan.events.Progress` after each video.

    Raises:
        SettingsError: If an argument cannot be used, or `out` holds something else.
        SourceError: If a tar or folder cannot be read, or there is no video.
        HeadspanError: If PyAV is not installed.
    """
    _check(count, encode, images_per_shard, workers)
    import_av()
    folder = expand_user(str(out))
    if folder.suffix.lower() in _PACKED:
        raise SettingsError(f"{out}: frames are encoded already, so tars are not packed; name a .tar, or a folder")
    patterns = [str(each) for each in ([videos] if isinstance(videos, str | Path) else videos)]
    found = find_videos(patterns, allow_pipe, on_progress)
    described, missing = describe(found, captions, only, on_progress)
    jobs = plan(described, folder, count, images_per_shard)
    try:
        with alone(folder):
            begin(folder, jobs, count, encode)
            run = _Run(jobs, count, encode, workers or cores(), on_progress)
            run.review()
            run.write()
            aside = [run.aside[place] for place in sorted(run.aside)]
            aside += [SetAside(name, f"{only}", "is in the list, but not among the videos") for name in missing]
            listed_in = _list(folder, aside)
    except OSError as error:
        raise SettingsError(
            f"{error.filename or folder}: cannot be written ({error.strerror}); solve that, and run the same again"
        ) from error
    there = [job for job in jobs if job.place not in run.aside]
    silent = sum(not job.described.captions for job in there)
    return WrittenFrames(
        str(folder),
        len(there),
        run.earlier,
        count,
        run.short,
        silent,
        tuple(aside),
        None if listed_in is None else str(listed_in),
    )


class _Run:
    """One call: what is done, and what was set aside, by the places of the videos."""

    def __init__(self, jobs: Sequence[Job], count: int, encode: str, workers: int, on_progress: Listener) -> None:
        self._jobs, self._count, self._encode, self._workers = jobs, count, encode, workers
        self._on_progress, self._done = on_progress, 0
        self._finished: set[Path] = set()
        self.aside: dict[int, SetAside] = {}
        self.earlier = self.short = 0

    def review(self) -> None:
        """Keep the tars that an earlier call completed, if the videos that they lack still do not decode."""
        for tar, group in groupby(self._jobs, key=lambda job: job.tar):
            if not tar.exists():
                continue
            jobs, keys = list(group), keys_in(tar)
            for job, result in self._decoded([job for job in jobs if job.key not in keys]):
                if isinstance(result, Frames):
                    tar.unlink(missing_ok=True)
                else:
                    self._set_aside(job, result)
            if tar.exists():
                self._finished.add(tar)
                self.earlier += len(keys)
                self._done += len(jobs)

    def write(self) -> None:
        """Write the tars that are missing."""
        left = [job for job in self._jobs if job.tar not in self._finished]
        self._report()
        results = self._decoded(left)
        for path, group in groupby(results, key=lambda pair: pair[0].tar):
            tar: StagedTar | None = None
            try:
                for job, result in group:
                    if isinstance(result, Frames):
                        tar = tar or StagedTar(path)
                        tar.write(_sample(job, result))
                        self.short += result.is_short
                    else:
                        self._set_aside(job, result)
                    self._done += 1
                    self._report()
                if tar is not None:
                    tar.finish()
            except BaseException:
                if tar is not None:
                    tar.discard()
                raise

    def _decoded(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Frames | str]]:
        return decoded(jobs, self._count, self._encode, self._workers)

    def _set_aside(self, job: Job, reason: str) -> None:
        self.aside[job.place] = SetAside(job.described.video.name, job.described.video.source, reason)

    def _report(self) -> None:
        note = f"{counted(len(self.aside), 'video')} set aside" if self.aside else ""
        self._on_progress(Progress("frames", self._done, len(self._jobs), note))


def _sample(job: Job, frames: Frames) -> dict[str, str | bytes]:
    """A video's frames and captions as a sample of WebDataset."""
    digits = max(3, len(str(len(frames.taken) - 1)))
    images = {f"{place:0{digits}d}.{kind}": data for place, (kind, data) in enumerate(frames.taken)}
    metadata = {
        **job.described.metadata,
        "video": job.described.video.name,
        "count": len(frames.taken),
        "duration": round(frames.duration_seconds, 6),
        "times": [round(seconds, 6) for seconds in frames.times],
        "captions": list(job.described.captions),
    }
    text = {"txt": job.described.captions[0]} if job.described.captions else {}
    return {"__key__": job.key, **images, "json": json_text(metadata, job.key), **text}


def _list(out: Path, aside: Sequence[SetAside]) -> Path | None:
    """Write the list of the videos that were set aside, in place of an earlier one."""
    path = list_of_set_aside(out)
    if not aside:
        path.unlink(missing_ok=True)
        return None
    lines = (
        json.dumps({"video": each.video, "source": each.source, "reason": each.reason}, ensure_ascii=False) + "\n"
        for each in aside
    )
    write_atomically(path, [line.encode("utf-8", "backslashreplace") for line in lines])
    return path


def _check(count: int, encode: str, images_per_shard: int, workers: int | None) -> None:
    if encode not in FORMATS:
        raise SettingsError(f"encode {encode!r} is unknown; use {', '.join(FORMATS)}")
    for name, value in (("count", count), ("images_per_shard", images_per_shard), ("workers", workers)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}; give at least 1")
