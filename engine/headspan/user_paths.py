"""Folders of the user: `~` in local paths, and the folder of caches."""

from __future__ import annotations

import os
from pathlib import Path

from headspan.errors import HeadspanError, SettingsError


def expand_user(path: str | Path, error: type[HeadspanError] = SettingsError) -> Path:
    """The path with `~` or `~user` replaced by the user's home folder. Raises `error` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as failure:
        raise error(f"{path}: no such user; write the full path") from failure


def cache_folder() -> Path:
    """`headspan` in the user's cache folder: `XDG_CACHE_HOME`, or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headspan"
