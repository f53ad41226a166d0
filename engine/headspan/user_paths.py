"""Expand `~` in local paths that users write."""

from __future__ import annotations

from pathlib import Path

from headspan.errors import HeadspanError, SettingsError


def expand_user(path: str | Path, error: type[HeadspanError] = SettingsError) -> Path:
    """The path with `~` or `~user` replaced by the user's home folder. Raises `error` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as failure:
        raise error(f"{path}: no such user; write the full path") from failure
