"""Find videos with their companions, in tars, folders and files, in a fixed order.

Of `a/b.mp4`, the companions are `a/b.txt` and `a/b.json`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from headspan.errors import SourceError, counted
from headspan.events import NOTE, Listener, Progress
from headspan.io.retry import is_remote, unreadable
from headspan.shards.image_folder import extension_of, stem_of
from headspan.shards.kinds import PARQUET, TAR, kind_of
from headspan.shards.sources import open_shard
from headspan.shards.tar import LINK, Tar
from headspan.shards.urls import ARCHIVES, expand, local_path, stored_names

VIDEO_EXTENSIONS = frozenset(
    ("mp4", "m4v", "webm", "avi", "mkv", "mov", "3gp", "3g2", "mpg", "mpeg", "wmv", "flv", "ogv", "mts", "m2ts")
)
_COMPANIONS = ("txt", "json")
# A companion of more bytes is a table of all captions, and belongs to no single video.
_MOST_COMPANION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Video:
    """A video of the input: where its bytes are, and its companions' bytes by extension."""

    # The path in the tar or folder, or the name of the file.
    name: str
    # The tar or file that holds it, and its name in messages, without secrets.
    url: str
    source: str
    offset: int = 0
    # None for a file of its own.
    size_bytes: int | None = None
    # The path of a local file that holds the bytes at `offset`; None if they must be read through `open_shard`.
    path: str | None = None
    companions: tuple[tuple[str, bytes], ...] = ()
    # Why the member has no bytes, if it has none.
    dead: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What captions and lists may call the video."""
        stem = stem_of(self.name)
        return tuple(dict.fromkeys((self.name, stem, PurePosixPath(self.name).name, PurePosixPath(stem).name)))


def find_videos(patterns: Sequence[str], allow_pipe: bool, on_progress: Listener) -> list[Video]:
    """All videos that `patterns` name: in tars (see `shards.urls.expand`), in folders and below, and files.

    Raises SourceError if a pattern names nothing, or if there is no video at all.
    """
    urls: list[str] = []
    for pattern in patterns:
        urls += (
            [pattern]
            if _holds_videos(pattern)
            else expand([pattern], allow_pipe, lambda note: _tell(on_progress, note))
        )
    if repeated := next((url for number, url in enumerate(urls) if url in urls[:number]), None):
        raise SourceError(f"{repeated}: named twice; name each tar, folder and video once")
    found: list[Video] = []
    for source, url in stored_names(urls).items():
        videos = list(_in_source(url, source, on_progress))
        if not videos:
            _tell(on_progress, f"{source}: holds no video")
        found += videos
        on_progress(Progress("videos", len(found), None))
    if not found:
        kinds = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise SourceError(
            f"{', '.join(patterns) or 'nothing'}: no video was found; name tars, folders or files of {kinds}"
        )
    return found


def _holds_videos(pattern: str) -> bool:
    """Whether it is a folder to search for videos, rather than one of tars."""
    path = Path(local_path(pattern)) if pattern and not is_remote(pattern) else None
    return path is not None and path.is_dir() and not any(next(path.glob(kind), None) for kind in ARCHIVES)


def _in_source(url: str, source: str, on_progress: Listener) -> Iterator[Video]:
    if not is_remote(url) and (folder := Path(local_path(url))).is_dir():
        yield from _in_folder(folder, source, on_progress)
    elif extension_of(url.partition("?")[0] if is_remote(url) else url) in VIDEO_EXTENSIONS:
        name = PurePosixPath(url.partition("?")[0]).name
        path = None if is_remote(url) else local_path(url)
        beside = [] if path is None else [(kind, Path(stem_of(path) + f".{kind}")) for kind in _COMPANIONS]
        companions = tuple((kind, _content(each)) for kind, each in beside if each.is_file())
        yield Video(name, url, source, path=path, companions=companions)
    elif kind_of(url) == TAR:
        yield from _in_tar(url, source)
    else:
        what = "a Parquet file" if kind_of(url) == PARQUET else "a list"
        raise SourceError(f"{source}: is {what}; name tars, folders or files of videos")


def _in_folder(folder: Path, source: str, on_progress: Listener) -> Iterator[Video]:
    """The videos in a folder and below. Linked folders are followed, each real folder once."""
    paths, entered = [], set()

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename or str(folder), error)

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        if (real := os.path.realpath(place)) in entered:
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [Path(place, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    there, others = frozenset(paths), 0
    stems = {stem_of(path) for path in paths if extension_of(path) in VIDEO_EXTENSIONS}
    for path in sorted(paths):
        if extension_of(path) in VIDEO_EXTENSIONS:
            beside = [(kind, f"{stem_of(path)}.{kind}") for kind in _COMPANIONS]
            companions = tuple((kind, _content(folder / name)) for kind, name in beside if name in there)
            yield Video(path, str(folder / path), f"{source}/{path}", path=str(folder / path), companions=companions)
        elif extension_of(path) not in _COMPANIONS or stem_of(path) not in stems:
            others += 1
    if others:
        _tell(
            on_progress, f"{source}: {counted(others, 'file')} beside the videos are neither videos nor their captions"
        )


def _in_tar(url: str, source: str) -> Iterator[Video]:
    videos: list[tuple[str, int, int]] = []
    companions: dict[str, bytes] = {}
    with open_shard(url) as reader:
        place = reader.place()
        path = None if place is None else place.path
        tar = Tar(reader)
        for name, offset, size, _ in tar.members():
            if PurePosixPath(name).name.startswith("._") or "__MACOSX" in PurePosixPath(name).parts:
                continue
            extension = extension_of(name)
            if extension in VIDEO_EXTENSIONS:
                videos.append((name, offset, size))
            elif extension in _COMPANIONS and 0 <= size <= _MOST_COMPANION_BYTES:
                companions[f"{stem_of(name)}.{extension}"] = tar.read(offset, size)
        for name, offset, size in videos:
            beside = [(kind, companions.get(f"{stem_of(name)}.{kind}")) for kind in _COMPANIONS]
            video = Video(name, url, source, offset, size, path, tuple((kind, data) for kind, data in beside if data))
            if size == LINK and (target := tar.links.target(offset)) is not None:
                video = replace(video, offset=target[0], size_bytes=target[1])
            elif size == LINK:
                video = replace(video, dead=f"is {tar.links.what_is_wrong(offset)}")
            yield video


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.stat().st_size <= _MOST_COMPANION_BYTES else b""
    except OSError as error:
        raise unreadable(str(path), error) from error


def _tell(on_progress: Listener, note: str) -> None:
    on_progress(Progress(NOTE, 1, 1, note))
