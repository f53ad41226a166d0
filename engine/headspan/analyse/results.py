"""What analyses add to a store: one group a run, `<kind>/<run>`, its arrays, and its settings as attributes.

Size and checksum of a run's files are recorded (`records/results/<kind>/<run>.json`), and a run is read only where its
files are as they were written. Runs that are older than these records are read as they are.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from headspan.errors import SettingsError, StoreError, one_line
from headspan.store.files import checksum, faults, named, new_token, write_atomically
from headspan.store.reader import Store
from headspan.store.schema import RECORDS, UNREADABLE

_RECORDS = f"{RECORDS}/results"
# What a run may be called, and what the files of a Zarr group are called: its metadata and its chunks.
_RUN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_ZARR_FILE = r"zarr\.json|c|[0-9]+"
# What is being written is no older.
_LEFT_SECONDS = 3600

# What is made from a run of each kind, under the same name.
_MADE_FROM = {
    "texts": (),
    "textspan": ("labels", "ccs", "truth"),
    "labels": ("ccs", "truth"),
    "ccs": ("truth",),
    "truth": (),
}
_COMMANDS = {
    "texts": "headspan textspan",
    "textspan": "headspan textspan",
    "labels": "headspan label",
    "ccs": "headspan ccs",
    "truth": "headspan demo",
}
# An array with the names of its axes.
Named = tuple[np.ndarray, tuple[str, ...]]


def save(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
) -> None:
    """Write arrays and settings in place of an earlier run of that name, and drop what was made from that run.

    Interrupted, it leaves the earlier run or none. Raises StoreError where it cannot be written.
    """
    check_run(run)
    try:
        # Under a name of its own first, so that a run is there whole or not at all.
        unnamed = _unnamed(store.path / kind, run)
        try:
            group = _group_of(store.path, kind).create_group(unnamed.name)
            for name, (values, dims) in arrays.items():
                group.create_array(name, data=values, dimension_names=list(dims))
            group.attrs.update(settings)
            for each in (*_MADE_FROM[kind], kind):
                _remove(store.path, each, run)
            unnamed.rename(store.path / kind / run)
        finally:
            shutil.rmtree(unnamed, ignore_errors=True)
        _note(store.path, kind, run)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise StoreError(
                f"{store.path}/{kind}/{run}: another process has just written this run; run one at a time"
            ) from error
        raise StoreError(
            f"{store.path}/{kind}/{run}: cannot be written ({error.strerror}); make room or mend its permissions"
        ) from error


def check_run(run: str) -> None:
    """Raise SettingsError where `run` cannot be the name of a run."""
    if not re.fullmatch(_RUN, run) or run == "zarr.json":
        raise SettingsError(f"run name {run!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def load(store: Store, kind: str, run: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and settings of a run.

    StoreError where it is not there, or not as it was written, naming the command that makes it.
    """
    _refuse_damaged(store, kind, run)
    node = _open(store, kind, run)
    # By the folders that are arrays: zarr-python's own listing warns of each file that is none.
    names = sorted(path.parent.name for path in (store.path / kind / run).glob("*/zarr.json"))
    return {name: np.asarray(_array(node, name)[...]) for name in names}, dict(node.attrs)


def _array(node: zarr.Group, name: str) -> zarr.Array[Any]:
    array = node[name]
    assert isinstance(array, zarr.Array), name
    return array


def load_settings(store: Store, kind: str, run: str) -> dict[str, Any]:
    """The settings of a run alone, without reading its arrays; StoreError as in `load`."""
    _refuse_damaged(store, kind, run, metadata_alone=True)
    return dict(_open(store, kind, run).attrs)


def _node(store: Store, kind: str, run: str) -> zarr.Group | None:
    """The group of a run; None where there is none, or one that was interrupted while being written."""
    try:
        node = zarr.open_group(store.path, mode="r", use_consolidated=False).get(f"{kind}/{run}")
    except UNREADABLE as error:
        raise StoreError(
            f"{store.path}: the {kind} run {run!r} is damaged ({one_line(error)}); run {_COMMANDS[kind]} again"
        ) from error
    return node if isinstance(node, zarr.Group) and node.attrs else None


def _open(store: Store, kind: str, run: str) -> zarr.Group:
    node = _node(store, kind, run)
    if node is None:
        raise StoreError(
            f"{store.path}: holds no {kind} run {run!r} (has {_listed(runs(store, kind))}); run {_COMMANDS[kind]}"
        )
    return node


def runs(store: Store, kind: str) -> list[str]:
    """The names of the runs of one kind, of those too that are damaged, which `load` then says."""
    folder = store.path / kind
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            try:
                there = _node(store, kind, path.name) is not None
            except StoreError:
                there = True
            if there:
                found.append(path.name)
    return found


def sound(store: Store, kind: str, run: str, metadata_alone: bool = False) -> bool:
    """Whether there is that run, as it was written."""
    try:
        _refuse_damaged(store, kind, run, metadata_alone)
        return _node(store, kind, run) is not None
    except StoreError:
        return False


def damaged(store: Store) -> Iterator[tuple[str, str]]:
    """Files of runs that are not as they were written, by their path in the store: what is wrong, and what to do."""
    for kind, command in _COMMANDS.items():
        for record in named(store.path / _RECORDS / kind, rf"{_RUN}\.json"):
            again = f"run {command} again for run {record.stem}"
            if not _vouches(store.path, kind, record):
                continue
            if not (store.path / kind / record.stem).is_dir():
                yield f"{kind}/{record.stem}", f"{kind}/{record.stem} is missing; {again}, or delete {record}"
                continue
            try:
                for name, what in faults(store.path, _recorded(record)):
                    yield name, f"{what}; {again}"
            except StoreError as error:
                yield str(record.relative_to(store.path)), str(error)


def _vouches(root: Path, kind: str, record: Path) -> bool:
    """Whether a file that is named like a record is one: of a run that is there, or of files of a run that is lost.

    A sync tool's copy of a record names the files of another run.
    """
    if (root / kind / record.stem).is_dir():
        return True
    with suppress(StoreError):
        return any(name.startswith(f"{kind}/{record.stem}/") for name in _recorded(record))
    return False


def _refuse_damaged(store: Store, kind: str, run: str, metadata_alone: bool = False) -> None:
    record = _record(store.path, kind, run)
    files = _recorded(record) if record.is_file() else {}
    wanted = {name: found for name, found in files.items() if not metadata_alone or name.endswith("zarr.json")}
    for _, what in faults(store.path, wanted):
        raise StoreError(f"{store.path}: the {kind} run {run!r} is damaged: {what}; run {_COMMANDS[kind]} again")


def _record(root: Path, kind: str, run: str) -> Path:
    return root / _RECORDS / kind / f"{run}.json"


def _recorded(record: Path) -> dict[str, tuple[int, int]]:
    try:
        return {name: (size, crc) for name, (size, crc) in json.loads(record.read_bytes()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        command = _COMMANDS[record.parent.name]
        raise StoreError(f"{record}: this record is damaged ({one_line(error)}); run {command} again") from error


def _note(root: Path, kind: str, run: str) -> None:
    """Record the files of a run."""
    files = (path for path in (root / kind / run).rglob("*") if path.is_file() and re.fullmatch(_ZARR_FILE, path.name))
    paths = [root / kind / "zarr.json", *sorted(files)]
    record = _record(root, kind, run)
    record.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(record, [json.dumps({str(path.relative_to(root)): checksum(path) for path in paths}).encode()])


def _remove(root: Path, kind: str, run: str) -> None:
    """Take a run away, however damaged it is; whole, in one step."""
    _record(root, kind, run).unlink(missing_ok=True)
    if (root / kind / run).is_dir():
        unnamed = _unnamed(root / kind, run)
        (root / kind / run).rename(unnamed)
        shutil.rmtree(unnamed)


def _unnamed(folder: Path, run: str) -> Path:
    """Where a run lies before it has its name, and after; what the killed left there an hour ago is removed."""
    for left in folder.glob(f".{run}.*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
    return folder / f".{run}.{new_token()}"


def _group_of(root: Path, kind: str) -> zarr.Group:
    """The group of a kind's runs, whose metadata say nothing, and are written anew where they are damaged."""
    store = zarr.open_group(root, mode="r+", use_consolidated=False)
    try:
        return store.require_group(kind)
    except UNREADABLE:
        (root / kind / "zarr.json").unlink()
        return store.require_group(kind)


def only_run(store: Store, kind: str, run: str | None) -> str:
    """`run`, or the one run of that kind there is. StoreError where there is none or a choice."""
    if run is not None:
        return run
    found = runs(store, kind)
    if len(found) != 1:
        todo = f"run {_COMMANDS[kind]}" if not found else "name one with --run, in Python with run="
        raise StoreError(f"{store.path}: has {_listed(found)} as {kind} runs; {todo}")
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
