"""Which tar holds which videos' frames, and how far an earlier call with the same plan came.

A tar of a folder holds a fixed range of the videos, whichever of them decode, so a tar that an earlier call completed
can be kept. A plan that differs from the folder's is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from headspan.errors import SettingsError, StoreError
from headspan.io.files import final_name, write_atomically
from headspan.io.locks import LockedLog, read_log
from headspan.shards.image_folder import stem_of
from headspan.shards.keys import Keys
from headspan.shards.sources import open_shard
from headspan.shards.tar import Tar
from headspan.video.captions import Described
from headspan.video.pipeline import Job

_PLAN = "frames.json"


def plan(described: Sequence[Described], out: Path, count: int, images_per_shard: int) -> list[Job]:
    """The videos in order, with their keys and tars: `out` itself if its name ends in `.tar`, else tars in it."""
    keys, per_tar = Keys(), max(1, images_per_shard // count)
    return [
        Job(
            place,
            keys.key_of(stem_of(each.video.name)),
            out if is_tar(out) else out / f"{place // per_tar:06d}.tar",
            each,
        )
        for place, each in enumerate(described)
    ]


def is_tar(out: Path) -> bool:
    """Whether frames go into a single tar."""
    return out.suffix.lower() == ".tar"


def list_of_set_aside(out: Path) -> Path:
    """The file that lists the videos that could not be used."""
    return out.with_suffix(".set-aside.jsonl") if is_tar(out) else out / "set-aside.jsonl"


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Let one process write `out`, and remove what a killed one left. Raises SettingsError if another writes."""
    folder = out.parent if is_tar(out) else out
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{out.name}.lock"
    if (found := read_log(path)) is not None and found[0]:
        raise SettingsError(f"{out}: another process is writing it; wait for it, or delete {path} if there is none")
    lock = LockedLog(path)
    try:
        lock.open()
    except StoreError as error:
        raise SettingsError(f"{folder}: cannot be written; name another place, or make it writable") from error
    try:
        for each in folder.glob(".*.tmp"):
            target = final_name(each)
            if target is not None and (target[0] in (out, list_of_set_aside(out)) or not is_tar(out)):
                with suppress(OSError):
                    each.unlink()
        yield
    finally:
        lock.close(delete=True)


def begin(out: Path, jobs: Sequence[Job], count: int, encode: str) -> None:
    """Record the plan in the folder `out`. Raises SettingsError if there is something else, or another plan."""
    if is_tar(out):
        if out.exists():
            raise SettingsError(f"{out}: exists; name another tar, or remove it")
        return
    path, mine = out / _PLAN, _facts(jobs, count, encode)
    there = [each for each in out.iterdir() if each.name != f".{out.name}.lock"]
    if path in there:
        with suppress(ValueError, OSError):
            if (theirs := json.loads(path.read_bytes())) == mine:
                return
            differs = [name for name in mine if not isinstance(theirs, dict) or theirs.get(name) != mine[name]]
            raise SettingsError(
                f"{out}: was begun with other {', '.join(differs)}; give the same as then, or name another folder"
            )
        raise SettingsError(f"{path}: is damaged; remove the folder, or name another")
    if there:
        raise SettingsError(f"{out}: exists and is not an empty directory; name another, or remove it")
    write_atomically(path, [(json.dumps(mine, indent=2) + "\n").encode()])


def keys_in(tar: Path) -> frozenset[str]:
    """The keys of the videos in a tar that an earlier call wrote."""
    with open_shard(str(tar)) as reader:
        return frozenset(name[: -len(".json")] for name, *_ in Tar(reader).members() if name.endswith(".json"))


def _facts(jobs: Sequence[Job], count: int, encode: str) -> dict[str, object]:
    """What decides the tars' bytes, apart from the bytes of the videos."""
    videos = [
        [job.key, job.tar.name, job.described.video.size_bytes, job.described.captions, dict(job.described.metadata)]
        for job in jobs
    ]
    digest = hashlib.sha256(json.dumps(videos, sort_keys=True).encode()).hexdigest()
    return {"count": count, "encode": encode, "videos, captions or images per shard": digest}
