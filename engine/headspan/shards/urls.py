"""Expand patterns of shards to urls, and name the urls for stores and messages. No shard is opened."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import braceexpand

from headspan.errors import SourceError, counted
from headspan.io.retry import LOCAL_ERRORS, is_remote, refuse_unencoded, unreadable
from headspan.redact import redact
from headspan.shards.image_folder import extension_of, has_image
from headspan.shards.members import IMAGE_EXTENSIONS
from headspan.user_paths import expand_user

ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.zst", "*.tzst")
TABLES = "*.parquet"


def expand(
    patterns: Sequence[str], allow_pipe: bool = False, on_note: Callable[[str], None] = lambda sentence: None
) -> list[str]:
    """The urls of the shards that `patterns` name, in their order. Globs and directories are sorted.

    A pattern is a tar, a Parquet file, a list of images, a brace pattern (`data/{0000..0127}.tar`), a glob, a
    directory, a url or a `pipe:` command. In urls and commands only braces are expanded. A directory stands for its
    ARCHIVES; without any, for its .parquet files or those in its folder `data`; without any, for the images in it and
    below. `on_note` receives a sentence if it holds several of these.

    Raises SourceError for a pattern without a match, a missing file, a shard named twice, and, unless `allow_pipe`, a
    `pipe:` command: a list of shards may come from somebody else, and commands can do anything.
    """
    urls: list[str] = []
    for pattern in patterns:
        if not pattern:
            raise SourceError("an empty name was given as a shard; name a tar, pattern or directory")
        urls += _expand_one(pattern, on_note)
    if not urls:
        raise SourceError("no shards were given; name at least one tar, folder of images, Parquet file or list")
    seen: set[str] = set()
    for url in urls:
        if url.startswith("pipe:") and not allow_pipe:
            raise SourceError(
                f"{url}: is a command, which runs with your permissions; if you trust it give --allow-pipe "
                "(allow_pipe=True in Python)"
            )
        try:
            url.encode()
        except UnicodeEncodeError as error:
            raise SourceError(f"{os.fsencode(url)!r}: the file's name is not UTF-8; rename it") from error
        refuse_unencoded(url)
        identity = url if is_remote(url) else str(Path(local_path(url)).absolute())
        if identity in seen:
            raise SourceError(f"{url}: named twice among the shards; name each shard once")
        seen.add(identity)
    return urls


def stored_names(urls: Sequence[str]) -> dict[str, str]:
    """Each url by its name in stores and messages, which is unique and without secrets."""
    names: dict[str, str] = {}
    for url in urls:
        name = plain = redact(url) if is_remote(url) else url
        number = 1
        while name in names:
            number += 1
            name = f"{plain} ({number})"
        names[name] = url
    return names


def local_path(url: str) -> str:
    """The path of a local url, with `file:` and `~` resolved."""
    path = url.removeprefix("file:")
    return str(expand_user("/" + path.lstrip("/") if path.startswith("//") else path, SourceError))


def is_relative(url: str) -> bool:
    """Whether `url` depends on the current folder."""
    return not is_remote(url) and not Path(local_path(url)).is_absolute()


def not_a_file(url: str) -> SourceError:
    """The error for a folder, a named pipe or a device in place of a shard."""
    # A named pipe can be read only once, but a shard is read at least twice.
    return SourceError(f"{url}: not a regular file; name a file, or a command as in 'pipe:cat a.tar'")


def _expand_one(pattern: str, on_note: Callable[[str], None]) -> list[str]:
    # Before any other message shows the pattern.
    refuse_unencoded(pattern)
    try:
        return _expand_known(pattern, on_note)
    except (*LOCAL_ERRORS, NotImplementedError, re.error) as error:
        # A name that is too long, a folder that may not be read, or a glob that Python does not support.
        raise unreadable(pattern, error) from error


def _expand_known(pattern: str, on_note: Callable[[str], None]) -> list[str]:
    if not is_remote(pattern) and Path(local_path(pattern)).is_file():
        return _find_local(pattern, pattern, on_note)
    try:
        # Only with braces, since the expansion removes backslashes, which a command may need.
        names = list(braceexpand.braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise SourceError(f"{pattern}: its braces do not match; close each, as in {{0000..0127}}") from error
    return [url for name in names for url in ([name] if is_remote(name) else _find_local(name, pattern, on_note))]


def _find_local(name: str, pattern: str, on_note: Callable[[str], None]) -> list[str]:
    path = Path(local_path(name))
    if path.is_file():
        if extension_of(path.name) in IMAGE_EXTENSIONS:
            raise SourceError(f"{name}: is an image; name the folder that holds the images, or write a list of them")
        return [name]
    if path.is_dir():
        return _in_folder(name, path, on_note)
    if path.exists():
        raise not_a_file(name)
    if glob.has_magic(name):
        files = (match for match in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if match.is_file())
        found = sorted(str(match) for match in files if not match.name.startswith("."))
        if not found:
            raise SourceError(f"{name}: the pattern matches no file; check the path and quote the pattern")
        return found
    of = "" if name == pattern else f" (of the pattern {pattern})"
    raise SourceError(f"{name}: no such file{of}; check the path and the pattern's range")


def _in_folder(name: str, path: Path, on_note: Callable[[str], None]) -> list[str]:
    """The shards that a folder stands for."""
    # macOS adds a `._name` for every file that it copies.
    beside = [each for each in path.iterdir() if not each.name.startswith(".")]
    tars = sorted({str(each) for each in beside for kind in ARCHIVES if each.match(kind)})
    tables = sorted(str(each) for each in beside if each.match(TABLES))
    # As repositories of data sets on Hugging Face have them.
    tables = tables or sorted(str(each) for each in (path / "data").glob(TABLES) if not each.name.startswith("."))
    images = sum(extension_of(each.name) in IMAGE_EXTENSIONS for each in beside)
    if not (tars or tables):
        if not has_image(path):
            raise SourceError(
                f"{name}: no .tar in this directory, no .parquet, and no image in it or below; name the directory that "
                "holds the shards or images"
            )
        return [name.rstrip("/") or name]
    others = []
    if tars and tables:
        others.append(counted(len(tables), "Parquet file"))
    if images:
        others.append(counted(images, "image"))
    if others:
        read = counted(len(tars), "tar") if tars else counted(len(tables), "Parquet file")
        left = " nor the ".join(others)
        on_note(f"{name}: {read} in this directory will be read, but not the {left} beside; name those alone")
    return tars or tables
