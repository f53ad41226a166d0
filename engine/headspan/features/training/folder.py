"""Prepare the folder of a training: a new one, or that of the same training, which goes on or is finished."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from headspan.errors import SettingsError, StoreError
from headspan.events import NOTE, Listener, Progress
from headspan.features.training.files import SETTINGS
from headspan.features.training.settings import different
from headspan.io.files import make_folder, refusals
from headspan.io.json_files import read_json, write_json
from headspan.io.locks import alone

_MADE_WITH = "made_with"


def refuse_other_folder(folder: Path, origin: str) -> None:
    """Raise StoreError if no training can go into a folder; called before what takes long, as `prepare_folder` later.

    `origin` says what kind of folder is wanted, such as "a dictionary that headspan trained".
    """
    if not (folder / SETTINGS).is_file() and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: exists and is not {origin}; choose another --out")
    above = next(each for each in folder.absolute().parents if each.exists())
    if not above.is_dir():
        raise StoreError(f"{folder}: cannot be written ({above} is a file); choose another --out")


def prepare_folder(
    folder: Path, wanted: Mapping[str, Any], finished: str, versions: Mapping[str, str], kind: str, origin: str
) -> bool:
    """Write `training.json` into a new folder, or compare it with that of the folder; returns whether it is finished.

    Args:
        folder: The folder.
        wanted: The settings that decide what the training gives.
        finished: The name of the file that is written last.
        versions: Versions of packages, which are recorded and may differ when a training goes on.
        kind: What the folder holds, such as "a dictionary", for the error.
        origin: What kind of folder is wanted, such as "a dictionary that headspan trained", for the error.

    Raises StoreError if the folder is of something else, and SettingsError if its training has other settings.
    """
    path = folder / SETTINGS
    if not path.is_file():
        refuse_other_folder(folder, origin)
        with refusals(folder):
            make_folder(folder)
        write_json(path, {**wanted, _MADE_WITH: versions})
        return False
    kept = read_json(path, "delete the folder to train from the start")
    kept.pop(_MADE_WITH, None)
    if difference := different(kept, wanted):
        raise SettingsError(
            f"{folder}: is {kind} with other settings ({difference}); choose another --out, or delete the folder"
        )
    return (folder / finished).is_file()


def only_trainer(folder: Path, on_progress: Listener) -> AbstractContextManager[None]:
    """Let one process at a time train into a folder. Another one says that it waits, and then finds the result."""
    note = f"another process is training into {folder}; waiting until it has finished (Ctrl-C leaves it alone)"
    return alone(folder, lambda: on_progress(Progress(NOTE, 0, None, note)))
