"""Expand patterns of shards to urls, and name the urls for stores and messages. No shard is opened."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

import braceexpand

from headspan.errors import SourceError
from headspan.io.retry import LOCAL_ERRORS, is_remote, refuse_unencoded, unreadable
from headspan.redact import redact
from headspan.user_paths import expand_user

ARCHIVES = ("*.tar", "*.tar.gz", "*.tgz", "*.tar.zst", "*.tzst")


def expand(patterns: Sequence[str], allow_pipe: bool = False) -> list[str]:
    """The urls of the shards that `patterns` name, in their order. Globs and directories are sorted.

    A pattern is a tar, a brace pattern (`data/{0000..0127}.tar`), a glob, a directory (its ARCHIVES),
    a url or a `pipe:` command. In urls and commands only braces are expanded.

    Raises SourceError for a pattern without a match, a missing file, a shard named twice, and, unless `allow_pipe`, a
    `pipe:` command: a list of shards may come from somebody else, and commands can do anything.
    """
    urls: list[str] = []
    for pattern in patterns:
        if not pattern:
            raise SourceError("an empty name was given as a shard; name a tar, pattern or directory")
        urls += _expand_one(pattern)
    if not urls:
        raise SourceError("no shards were given; name at least one tar, pattern or directory")
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


def _expand_one(pattern: str) -> list[str]:
    # Before any other message shows the pattern.
    refuse_unencoded(pattern)
    try:
        return _expand_known(pattern)
    except (*LOCAL_ERRORS, NotImplementedError, re.error) as error:
        # A name that is too long, a folder that may not be read, or a glob that Python does not support.
        raise unreadable(pattern, error) from error


def _expand_known(pattern: str) -> list[str]:
    if not is_remote(pattern) and Path(local_path(pattern)).is_file():
        return [pattern]
    try:
        # Only with braces, since the expansion removes backslashes, which a command may need.
        names = list(braceexpand.braceexpand(pattern)) if "{" in pattern else [pattern]
    except ValueError as error:
        raise SourceError(f"{pattern}: its braces do not match; close each, as in {{0000..0127}}") from error
    return [url for name in names for url in ([name] if is_remote(name) else _find_local(name, pattern))]


def _find_local(name: str, pattern: str) -> list[str]:
    path = Path(local_path(name))
    if path.is_file():
        return [name]
    if path.is_dir():
        tars = (tar for kind in ARCHIVES for tar in path.glob(kind))
        # macOS adds a `._name` for every file that it copies.
        found = sorted(str(tar) for tar in tars if not tar.name.startswith("."))
        if not found:
            raise SourceError(f"{name}: no .tar in this directory; name the directory that holds the shards")
        return found
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
