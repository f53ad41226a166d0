"""Export a store to the files of other tools: Parquet, NumPy's `.npy`, safetensors, or CSV.

Files appear under their names when they are complete. Images that failed are left out, or are rows of NaN, as `Store`
shows them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from headspan.config import parse_layers
from headspan.errors import SettingsError, StoreError, counted
from headspan.events import Listener, ignore
from headspan.io.local import LocalStorage
from headspan.io.storage import total_bytes
from headspan.io.targets import new_target, refuse_existing
from headspan.store.export.choice import Head, chosen, chosen_heads
from headspan.store.export.fixed import write_csv, write_safetensors
from headspan.store.export.npy import write_npy
from headspan.store.export.parquet import write_parquet
from headspan.store.reader import Store
from headspan.user_paths import expand_user, refuse_missing_folder

FORMATS = ("parquet", "npy", "safetensors", "csv")
DEFAULT_ARRAYS = ("embedding", "heads")
# In a folder: what the files are.
ABOUT = "export.json"
_FOLDERS = ("npy", "csv")
FLAG = "--to"


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export has written: the file or folder, its format, and how many images and bytes it has."""

    path: Path
    format: str
    images: int
    stored_bytes: int


def export(
    store: Store | str | Path,
    to: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    arrays: Sequence[str] | None = None,
    layers: str | Sequence[int] | None = None,
    heads: Sequence[Head] | None = None,
    overwrite: bool = False,
    on_progress: Listener | None = None,
) -> Exported:
    """Write a store's numbers, matrices or tables for other tools. A block of at most 64 MiB is in memory at a time.

    Args:
        store: The store, or its path. Open it with `include_failed=True` to keep images that failed, as rows of NaN.
        to: The file to write (`parquet`, `safetensors`) or the folder (`npy`, `csv`).
        format: `parquet`: a row for each image, with the columns of `store.samples()` and one for each head, such as
            `heads_L10_H3`. `npy`: one file for each array, `samples.parquet` and `export.json`, which names the axes.
            `safetensors`: the model's matrices, such as `head_to_joint.L10.H3`. `csv`: samples, shards and notes.
            None: by the ending of `to`.
        arrays: Arrays of the store (`heads`, `embedding`, `norm`, `mlps`, …), and `contributions`, those of the chosen
            heads in joint space, float32, as `store.head` returns them. None for `embedding` and `heads`. Parquet has
            32-bit numbers; `.npy` files have the stored type.
        layers: The layers of `heads`, `patches`, `contributions` and the matrices: `last4`, `8-11`, or numbers. None
            for all stored ones.
        heads: Layer and head of each head of the same; not together with `layers`.
        overwrite: Replace an earlier export.
        on_progress: Called with a `headspan.events.Progress` after each block.

    Returns:
        The path, the format, and the numbers of images and bytes.

    Raises:
        SettingsError: If an array, layer or head is not stored, or the format is unknown.
        StoreError: If `to` exists and is not replaced, or cannot be written.
    """
    store, on_progress = store if isinstance(store, Store) else Store(store), on_progress or ignore
    path = target_of(store, to)
    kind = _format(path, format)
    if arrays is not None and kind in ("safetensors", "csv"):
        raise SettingsError(f"--arrays: {kind} holds no arrays of images; leave --arrays out, or choose parquet or npy")
    if kind == "csv" and (layers is not None or heads):
        raise SettingsError(
            "--layers and --head: csv holds tables, not heads; leave them out, or choose another format"
        )
    numbers = parse_layers(layers, store.all_layers) if isinstance(layers, str) else layers
    replaceable = _is_export if kind in _FOLDERS else Path.is_file
    refuse_existing(path, FLAG, overwrite, replaceable)
    names = DEFAULT_ARRAYS if arrays is None else tuple(arrays)
    choices = chosen(store, names, numbers, heads) if kind in ("parquet", "npy") else []
    picked = chosen_heads(store, numbers, heads)
    with new_target(path, FLAG, overwrite, replaceable) as staged:
        if kind == "parquet":
            write_parquet(store, choices, staged, on_progress)
        elif kind == "safetensors":
            write_safetensors(store, picked, staged)
        else:
            staged.mkdir()
            about = {"arrays": write_npy(store, choices, staged, on_progress)} if kind == "npy" else {}
            tables = {"tables": write_csv(store, staged)} if kind == "csv" else {}
            (staged / ABOUT).write_text(_about(store, kind, {**about, **tables}))
    written = path.stat().st_size if path.is_file() else total_bytes(LocalStorage(path))
    return Exported(path, kind, store.images, written)


def target_of(store: Store, to: str | Path) -> Path:
    """Return the path to write. Raises StoreError if it is no name, or in the store or a missing folder."""
    path = expand_user(to, StoreError)
    if not path.name or not str(to):
        raise StoreError(f"{FLAG} {str(to)!r}: is not the name of a file or folder; name one, such as run.parquet")
    own, place = store.path.resolve(), path.resolve()
    if own == place or own in place.parents:
        raise StoreError(f"{path}: is in the store itself; choose another {FLAG}, outside of {store.path}")
    refuse_missing_folder(path, "export")
    return path


def _format(path: Path, given: str | None) -> str:
    """Return the format, by the name of the file if it is not given. Raises SettingsError if it is unknown."""
    ending = path.suffix.removeprefix(".").lower()
    if given is None:
        if ending in ("parquet", "safetensors"):
            return ending
        raise SettingsError(
            f"{FLAG} {path}: the name does not tell the format; end it in .parquet or .safetensors, or give --format "
            f"{' or '.join(_FOLDERS)}, which write a folder"
        )
    if given not in FORMATS:
        raise SettingsError(f"--format {given} is unknown; choose from {', '.join(FORMATS)}")
    if given in _FOLDERS and ending in ("parquet", "safetensors", "csv", "npy"):
        raise SettingsError(f"{FLAG} {path}: --format {given} writes a folder; name one, such as {path.stem}")
    return given


def _is_export(path: Path) -> bool:
    """Return whether `path` is a folder that an export has written."""
    try:
        return "headspan_export" in json.loads((path / ABOUT).read_bytes())
    except (OSError, ValueError, TypeError):
        return False


def _about(store: Store, kind: str, more: dict[str, Any]) -> str:
    attributes = {name: store.attributes.get(name) for name in ("model", "pretrained", "weights_sha256")}
    known = {"headspan_export": kind, "version": version("headspan"), "store": store.path.name, **attributes}
    return json.dumps({**known, "images": store.images, **more}, indent=2, ensure_ascii=False) + "\n"


def in_words(done: Exported) -> str:
    """Return what was written, in a sentence."""
    held = "" if done.format == "safetensors" else f"{counted(done.images, 'image')}, "
    return f"{held}{done.stored_bytes / 1e6:,.1f} MB written to {done.path}"
