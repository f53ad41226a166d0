"""The captions of videos: from their companions, or from a table of all, and lists of the videos that are wanted.

A table is a JSON file that maps the name of each video to a list of captions, as MSR-VTT, MSVD and DiDeMo have for
retrieval. A list is a text file with one name a line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.errors import SettingsError, SourceError, counted, one_line
from headspan.events import NOTE, Listener, Progress
from headspan.user_paths import expand_user
from headspan.video.sources import Video

# How many names a message lists.
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Described:
    """A video with its captions, and what else its JSON companion holds."""

    video: Video
    captions: tuple[str, ...]
    metadata: Mapping[str, Any]


def describe(
    videos: Sequence[Video], captions: str | Path | None, listed: str | Path | None, on_progress: Listener
) -> tuple[list[Described], list[str]]:
    """The videos with their captions, and the names in the list of which there is no video.

    `captions` is a table; without one, captions are those of companions. `listed` is a list of the wanted videos;
    without one, all are wanted. Names may have a path or an extension, or neither. Raises SettingsError if a name
    stands for several videos or the list for none, and SourceError if a file cannot be used.
    """
    missing: list[str] = []
    if listed is not None:
        wanted = _read_list(expand_user(listed))
        chosen, missing = _by_name(videos, wanted, f"{listed}")
        kept = {id(video) for video in chosen.values()}
        videos = [video for video in videos if id(video) in kept]
        if not videos:
            raise SettingsError(f"{listed}: names none of the videos, but {_shown(wanted)}; give names such as theirs")
    if captions is None:
        return [_with_companions(video, on_progress) for video in videos], missing
    table = _read_table(expand_user(captions))
    found, _ = _by_name(videos, table, f"{captions}")
    of_video = {id(video): table[name] for name, video in found.items()}
    if not of_video:
        raise SettingsError(f"{captions}: has captions for none of the videos, but for {_shown(list(table))}")
    if without := [video.name for video in videos if not of_video.get(id(video))]:
        _tell(on_progress, f"{captions}: no captions for {counted(len(without), 'video')} ({_shown(without)})")
    return [
        Described(video, of_video.get(id(video), ()), _with_companions(video, on_progress).metadata) for video in videos
    ], missing


def _by_name(videos: Sequence[Video], names: Iterable[str], where: str) -> tuple[dict[str, Video], list[str]]:
    """The video of each name, and the names of none."""
    by_name: dict[str, list[Video]] = {}
    for video in videos:
        for name in video.names:
            by_name.setdefault(name, []).append(video)
    found, missing = {}, []
    for name in names:
        # A full path names one video, whatever others are called without theirs.
        named = by_name.get(name, [])
        exact = [video for video in named if video.name == name] or named
        if len(exact) > 1:
            raise SettingsError(
                f"{where}: {name} stands for {len(exact)} videos, such as {exact[0].name} of {exact[0].source} and "
                f"{exact[1].name} of {exact[1].source}; give their paths"
            )
        if exact:
            found[name] = exact[0]
        else:
            missing.append(name)
    return found, missing


def _with_companions(video: Video, on_progress: Listener) -> Described:
    """The captions of `.txt`, one a line, then those of `.json` that it lacks, under `captions` or `caption`."""
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    for kind, data in video.companions:
        try:
            text = data.decode("utf-8-sig")
            if kind == "txt":
                captions += text.splitlines()
                continue
            content = json.loads(text, parse_constant=_refuse)
            if isinstance(content, list):
                content = {"captions": content}
            if not isinstance(content, dict):
                raise ValueError(f"a JSON {type(content).__name__}")
        except ValueError as error:
            _tell(on_progress, f"{video.name} in {video.source}: its .{kind} is not used ({one_line(error)})")
            continue
        for key in ("captions", "caption"):
            if key in content and (texts := _texts(content[key])) is not None:
                captions += texts
                del content[key]
        metadata = content
    return Described(video, _clean(captions), metadata)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _read_table(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}); give a JSON file of captions") from error
    if not isinstance(table, dict) or not table:
        raise SourceError(
            f"{path}: is a JSON {type(table).__name__} without entries for videos; map each video's name to a list of "
            "captions"
            if isinstance(table, dict)
            else f"{path}: is a JSON {type(table).__name__}; map each video's name to a list of captions"
        )
    found = {}
    for name, value in table.items():
        texts = _texts(value)
        if texts is None:
            raise SourceError(
                f"{path}: the captions of {name} are {json.dumps(value)[:60]}; give a list of strings for each video"
            )
        found[name] = _clean(texts)
    return found


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}); give a text file with a name a line") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not names:
        raise SourceError(f"{path}: is empty; give the name of a video a line")
    return names


def _texts(value: object) -> list[str] | None:
    """Captions as a JSON value has them: one string, or a list of strings; None for anything else."""
    if isinstance(value, str):
        return [value]
    return list(value) if isinstance(value, list) and all(isinstance(text, str) for text in value) else None


def _clean(captions: Iterable[str]) -> tuple[str, ...]:
    """Captions in one line each, without lone surrogates, empty ones and repetitions."""
    lines = (" ".join(text.encode("utf-8", "replace").decode().split()) for text in captions)
    return tuple(dict.fromkeys(line for line in lines if line))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _tell(on_progress: Listener, note: str) -> None:
    on_progress(Progress(NOTE, 1, 1, note))
