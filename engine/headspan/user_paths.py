"""Paths of the user: `~` in local paths, files that a command is to write, and the folder of caches."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from headspan.errors import HeadspanError, SettingsError, StoreError


def expand_user(path: str | Path, error: type[HeadspanError] = SettingsError) -> Path:
    """The path with `~` or `~user` replaced by the user's home folder. Raises `error` if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as failure:
        raise error(f"{path}: no such user; write the full path") from failure


def file_to_write(path: str | Path, what: str) -> Path:
    """The path of a file that the user names for a result, with `~` replaced; `what` names the result in errors.

    Commands call this before they do any work. Raises StoreError if it is no file's name, is a folder, or is in a
    folder that does not exist: its name may be mistyped, so it is not made.
    """
    found = expand_user(path, StoreError)
    if not str(path) or not found.name:
        raise StoreError(f"{str(path)!r}: the {what} cannot be written there (it is no file's name); name another file")
    refuse_missing_folder(found, what)
    if found.is_dir():
        raise StoreError(f"{path}: the {what} cannot be written there (it is a folder); name a file")
    return found


def refuse_missing_folder(path: Path, what: str) -> None:
    """Raise StoreError if the folder that `path` is to be in does not exist, or is a file."""
    # Where a link leads.
    folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
    try:
        if stat.S_ISDIR(folder.stat().st_mode):
            return
        why = f"{folder} is a file"
    except FileNotFoundError:
        why = f"there is no folder {folder}"
    except OSError as error:
        why = str(error.strerror)
    raise StoreError(f"{path}: the {what} cannot be written there ({why}); make the folder, or name another file")


def cache_folder() -> Path:
    """`headspan` in the user's cache folder: `XDG_CACHE_HOME`, or `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "headspan"
