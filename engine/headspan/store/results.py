"""What analyses add to a store: one group a run, `<kind>/<run>`, its arrays, and its settings as attributes.

No run is replaced or deleted unless the caller asks for it: a second run of the same content is left as it is, with
what was made from it, and other content under the same name is refused. A run is read only where its files are as they
were written (`result_files`); runs that are older than records of files are read as they are.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from headspan.errors import SettingsError, StoreError, one_line
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.local import drop_consolidated, new_token
from headspan.store.reader import Store
from headspan.store.result_files import COMMANDS, RUN_NAME, is_recorded, note, record_path, refuse_damaged
from headspan.store.schema import UNREADABLE

# What is being written is no older.
_LEFT_SECONDS = 3600
# Files are called after runs, and file systems take names of 255 bytes.
_LONGEST_NAME = 100

# What is made from a run of each kind, under the same name.
_MADE_FROM = {
    "texts": (),
    "textspan": ("labels", "ccs", "truth"),
    "labels": ("ccs", "truth"),
    "ccs": ("truth",),
    "truth": (),
}
# An array with the names of its axes.
Named = tuple[np.ndarray, tuple[str, ...]]


def save(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
    overwrite: bool = False,
    on_progress: Listener = ignore,
) -> None:
    """Write arrays and settings as a run.

    A run that holds the same content is kept, with the runs made from it, and `on_progress` receives a remark. Other
    content is refused with a StoreError unless `overwrite` is true: then the run is replaced, and the runs made from it
    are deleted. A damaged run is replaced, and the runs made from it are kept if the new files equal the recorded ones.

    Interrupted or refused by the disk, it leaves everything as it was. Raises StoreError where it cannot be written.
    """
    check_run(run)
    existed = (store.path / kind / run).is_dir()
    same = _holds(store, kind, run, arrays, settings)
    if same and not _older(store, kind, run, arrays, settings):
        if not record_path(store.path, kind, run).is_file():
            # Its writer was killed before it could record the files.
            with _refusals(store, kind, run):
                note(store.path, kind, run)
        on_progress(Progress(NOTE, 1, 1, f"{kind}/{run} is there already with the same content; it was left as it is"))
        return
    if not same and sound(store, kind, run) and not overwrite:
        raise refusal(store, kind, run, f"{_said(store, kind, run)} is there already and holds something else")
    with _refusals(store, kind, run):
        for folder in (store.path, store.path / kind):
            # Zarr would go on to read what `zarr.consolidate_metadata` copied there of the runs as they were.
            drop_consolidated(folder)
        # Under a name of its own first, so that a run is there whole or not at all.
        unnamed = _unnamed(store.path / kind, run)
        try:
            group = _group_of(store.path, kind).create_group(unnamed.name)
            for name, (values, dims) in arrays.items():
                group.create_array(name, data=values, dimension_names=list(dims))
            group.attrs.update(settings)
            changed = not (same or is_recorded(store.path, kind, run, unnamed))
            dependents = _dependents(store, kind, run, overwrite) if changed else []
            # A run that was not there when this one was begun is another process's.
            _swap(store.path, kind, run, unnamed, [f"{kind}/{run}"] * existed + dependents)
        finally:
            shutil.rmtree(unnamed, ignore_errors=True)
    if dependents:
        on_progress(Progress(NOTE, 1, 1, f"deleted {', '.join(dependents)}, made from the earlier {kind}/{run}"))
    if existed and changed:
        on_progress(Progress(NOTE, 1, 1, f"replaced the earlier {kind}/{run}"))


@contextmanager
def _refusals(store: Store, kind: str, run: str) -> Iterator[None]:
    """What the disk refuses while a run is written, as a StoreError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise StoreError(
                f"{store.path}/{kind}/{run}: another process has just written this run; run one at a time"
            ) from error
        raise StoreError(
            f"{store.path}/{kind}/{run}: cannot be written ({error.strerror}); make room or mend its permissions"
        ) from error


def _swap(root: Path, kind: str, run: str, unnamed: Path, leaving: list[str]) -> None:
    """Give the new run at `unnamed` its name, record its files, and delete the runs of `leaving` (as `kind/run`).

    Whatever is raised, either all runs are as they were before, or the new one is in place and recorded.
    """
    named = root / kind / run
    aside = {root / each: _unnamed(root / each.split("/")[0], run) for each in leaving}
    try:
        for folder, hidden in aside.items():
            if folder.is_dir():
                # Other processes delete hidden runs that are old.
                with suppress(OSError):
                    os.utime(folder)
                folder.rename(hidden)
        unnamed.rename(named)
        note(root, kind, run)
    except BaseException:
        if not unnamed.exists():
            if is_recorded(root, kind, run, named):
                _discard(root, kind, run, aside)
                raise
            named.rename(unnamed)
        for folder, hidden in aside.items():
            if hidden.is_dir():
                hidden.rename(folder)
        raise
    _discard(root, kind, run, aside)


def _discard(root: Path, kind: str, run: str, aside: Mapping[Path, Path]) -> None:
    """Delete runs that were moved aside, and the records of those whose place the new run has not taken."""
    for folder in aside:
        if folder.parent.name != kind:
            record_path(root, folder.parent.name, run).unlink(missing_ok=True)
    for hidden in aside.values():
        shutil.rmtree(hidden, ignore_errors=True)


def _dependents(store: Store, kind: str, run: str, overwrite: bool) -> list[str]:
    """What was made from an earlier run; StoreError where there is any and it must not be deleted."""
    dependents = made_from(store, kind, run)
    if dependents and not overwrite:
        raise refusal(store, kind, run, f"{kind} run {run!r} is damaged or missing, and was not made again as it was")
    return dependents


def made_from(store: Store, kind: str, run: str) -> list[str]:
    """What was made from a run, as `<kind>/<run>`, damaged or not."""
    return [f"{each}/{run}" for each in _MADE_FROM[kind] if run in runs(store, each)]


def refusal(store: Store, kind: str, run: str, why: str) -> StoreError:
    """The error of a caller who would replace a run, or delete what was made from it, without having asked for it."""
    lost = [f"{kind}/{run}"] * (run in runs(store, kind)) + made_from(store, kind, run)
    elsewhere = "choose another --run" if kind == "textspan" else "make it under another --run of headspan textspan"
    return StoreError(
        f"{store.path}: {why}; {elsewhere}, or give --overwrite (in Python overwrite=True), which deletes "
        f"{', '.join(lost)}"
    )


def check_run(run: str) -> None:
    """Raise SettingsError where `run` cannot be the name of a run."""
    if len(run) > _LONGEST_NAME:
        raise SettingsError(f"run name {run[:20]}…: has {len(run)} letters; use at most {_LONGEST_NAME}")
    if not re.fullmatch(RUN_NAME, run) or run == "zarr.json":
        raise SettingsError(f"run name {run!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")


def load(store: Store, kind: str, run: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and settings of a run.

    StoreError where it is not there, or not as it was written, naming the command that makes it; SettingsError where
    no run can have that name.
    """
    check_run(run)
    refuse_damaged(store, kind, run)
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
    check_run(run)
    refuse_damaged(store, kind, run, metadata_alone=True)
    return dict(_open(store, kind, run).attrs)


@contextmanager
def as_written(store: Store, kind: str, run: str) -> Iterator[None]:
    """While a run's settings are read: StoreError where they are not of the kind that headspan writes."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise StoreError(
            f"{store.path}: the {kind} run {run!r} holds settings that headspan does not write ({one_line(error)}); "
            f"run {COMMANDS[kind]} again, with --overwrite where it has that flag"
        ) from error


def _node(store: Store, kind: str, run: str) -> zarr.Group | None:
    """The group of a run; None where there is none, or one that was interrupted while being written."""
    try:
        node = zarr.open_group(store.path, mode="r", use_consolidated=False).get(f"{kind}/{run}")
    except UNREADABLE as error:
        raise StoreError(
            f"{store.path}: the {kind} run {run!r} is damaged ({one_line(error)}); run {COMMANDS[kind]} again"
        ) from error
    return node if isinstance(node, zarr.Group) and node.attrs else None


def _open(store: Store, kind: str, run: str) -> zarr.Group:
    node = _node(store, kind, run)
    if node is None:
        raise StoreError(
            f"{store.path}: holds no {kind} run {run!r} (has {_listed(runs(store, kind))}); run {COMMANDS[kind]}"
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
        refuse_damaged(store, kind, run, metadata_alone)
        return _node(store, kind, run) is not None
    except StoreError:
        return False


def _holds(store: Store, kind: str, run: str, arrays: Mapping[str, Named], settings: dict[str, Any]) -> bool:
    """Whether there is a sound run, all of whose arrays and settings are among these, with these values."""
    if not sound(store, kind, run):
        return False
    kept_arrays, kept = load(store, kind, run)
    # NaN equals NaN, and a tuple the list that JSON makes of it.
    return all(
        name in arrays and np.array_equal(np.asarray(arrays[name][0]), values) for name, values in kept_arrays.items()
    ) and all(name in settings and _as_json(settings[name]) == _as_json(value) for name, value in kept.items())


def _older(store: Store, kind: str, run: str, arrays: Mapping[str, Named], settings: dict[str, Any]) -> bool:
    """Whether a run, by an earlier headspan, lacks some of these arrays or settings."""
    kept_arrays, kept = load(store, kind, run)
    return not (arrays.keys() <= kept_arrays.keys() and settings.keys() <= kept.keys())


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _said(store: Store, kind: str, run: str) -> str:
    """A run, and who made it where its settings say so."""
    source = load_settings(store, kind, run).get("source")
    return f"{kind} run {run!r}" + (f" (by {source})" if source else "")


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
        check_run(run)
        return run
    found = runs(store, kind)
    if len(found) != 1:
        todo = f"run {COMMANDS[kind]}" if not found else "name one with --run, in Python with run="
        there = f"the {kind} runs {_listed(found)}" if found else f"no {kind} run"
        raise StoreError(f"{store.path}: has {there}; {todo}")
    return found[0]


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
