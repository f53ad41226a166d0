"""Save the result of an analysis in a store as a run: arrays and settings in the group `<kind>/<run>`.

Nothing is deleted or replaced but the run that the user names, and that only on request. Saving the same content again
changes nothing, and other content under the same name is refused. Runs that were made from a replaced or removed run
stay, and count as of an older run from then on (`store.lineage`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np

from headspan.errors import StoreError
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.files import new_token
from headspan.io.storage import Storage
from headspan.store.consolidated import unconsolidated
from headspan.store.lineage import (
    LINEAGE,
    checksum_of,
    content_checksum,
    note_sources,
    noted_key,
    older,
    sources_of,
)
from headspan.store.reader import Store
from headspan.store.result_files import hidden, is_recorded, note, place, record_key
from headspan.store.results import Named, check_run, load, load_settings, made_from, refusal, sound
from headspan.store.write.run_claim import claimed
from headspan.store.write.run_folder import group_of_kind

# Arrays and settings.
_Run = tuple[dict[str, np.ndarray], dict[str, Any]]
# A hidden run that is older was left by a killed process.
_LEFT_SECONDS = 3600
# Some 10⁴ roundings of float64 numbers in another order, in the worst case.
_ROUNDING = 1e-12


def save(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
    overwrite: bool = False,
    on_progress: Listener = ignore,
    sources: Mapping[str, str] | None = None,
    additions: Collection[str] = (),
) -> str:
    """Write arrays and settings as a run; return its checksum.

    `sources` are the checksums of the runs that it was made from, by `<kind>/<run>`. `additions` are the arrays and
    settings that no further run depends on, such as names; `sources` are then what these were made from. A run stays
    the same run if only its additions change, and keeps those that it has if it is saved without them.

    If the run exists with the same content, nothing changes, and `on_progress` receives a remark. Other content is
    refused with a StoreError unless `overwrite` is true: then the run is replaced, and the runs made from it count as
    of an older run. The same content from a newer source replaces the run. A damaged run is replaced; the runs made
    from it are unaffected if the new content equals the earlier one.

    After an interruption, an error or a kill everything is as before or as after. Raises StoreError if the run cannot
    be written.
    """
    check_run(run)
    storage, own, sources = store.contents.storage, f"{kind}/{run}", dict(sources or {})
    with _refusals(store, kind, run):
        _recover(storage, kind, run)
    existed = _exists(storage, own)
    kept = _kept(store, kind, run)
    equal = _holds(kept, arrays, settings)
    stays = bool(additions) and _holds(kept, arrays, settings, additions)
    adds = any(name in arrays or name in settings for name in additions)
    same = (equal and not _moved(store, kind, run, sources)) or (stays and not adds)
    if same and not _lacks(kept, arrays, settings):
        if storage.size(record_key(kind, run)) is None:
            # Its writer was killed before it could record the files.
            with _refusals(store, kind, run):
                note(storage, kind, run)
        on_progress(Progress(NOTE, 1, 1, f"{own} already has the same content; it is unchanged"))
        return checksum_of(storage, kind, run)
    if not equal and sound(store, kind, run) and not overwrite:
        what = f"{_said(store, kind, run)} already exists with other {'names' if stays else 'content'}"
        raise refusal(store, kind, run, what, "its names" if stays else None)
    # A run that gains arrays or settings stays the same run.
    same = same or stays
    checksum = checksum_of(storage, kind, run) if same else content_checksum(arrays, settings, sources, additions)
    with _refusals(store, kind, run), claimed(storage, kind, run), unconsolidated(storage, kind):
        # First under a hidden name, so that a run exists completely or not at all.
        unnamed = _hidden(storage, kind, run)
        try:
            with group_of_kind(storage, kind) as runs:
                group = runs.create_group(unnamed.split("/")[1])
                for name, (values, dims) in arrays.items():
                    group.create_array(name, data=values, dimension_names=_axes(store, dims, values.shape))
                group.attrs.update({**settings, LINEAGE: {"checksum": checksum, "made_from": sources}})
            changed = not (same or is_recorded(storage, kind, run, unnamed))
            derived = _derived(store, kind, run, overwrite or equal) if changed else []
            if changed:
                note_sources(storage, kind, run)
            # If the run exists now but did not before, another process has written it, and this one is refused.
            _swap(storage, kind, run, unnamed, existed)
        finally:
            storage.delete_folder(unnamed)
    if derived:
        on_progress(Progress(NOTE, 1, 1, f"kept {', '.join(derived)}, now marked as of an older {own}"))
    if existed and (changed or (stays and not equal)):
        on_progress(Progress(NOTE, 1, 1, f"replaced the earlier {own}"))
    return checksum


def remove(store: Store, kind: str, run: str) -> list[str]:
    """Delete a run. Return the runs that were made from it and now count as of an older run.

    After an interruption, an error or a kill the run is there or not. Raises StoreError if it cannot be deleted.
    """
    storage, own = store.contents.storage, f"{kind}/{run}"
    with _refusals(store, kind, run, "deleted"):
        _recover(storage, kind, run)
    with _refusals(store, kind, run, "deleted"), claimed(storage, kind, run), unconsolidated(storage, kind):
        derived = [each for each in made_from(store, kind, run) if older(storage, *each.split("/")) is None]
        note_sources(storage, kind, run)
        if storage.size(record_key(kind, run)) is None and _exists(storage, own):
            # So that a process that is killed next leaves a recorded run, which is found again.
            note(storage, kind, run)
        aside = _hidden(storage, kind, run)
        if _exists(storage, own):
            storage.move_folder(own, aside)
        storage.delete(record_key(kind, run))
        storage.delete(noted_key(kind, run))
        storage.delete_folder(aside)
    return derived


@contextmanager
def _refusals(store: Store, kind: str, run: str, what: str = "written") -> Iterator[None]:
    """Turn an OSError in writing a run into a StoreError."""
    try:
        yield
    except FileExistsError as error:
        raise StoreError(
            f"{store.path}/{kind}/{run}: another process has just written this run; run one command at a time"
        ) from error
    except OSError as error:
        raise StoreError(
            f"{store.path}/{kind}/{run}: cannot be {what} ({error.strerror}); free disk space or correct its "
            "permissions"
        ) from error


def _swap(storage: Storage, kind: str, run: str, unnamed: str, existed: bool) -> None:
    """Give the new run in the folder `unnamed` its name, record its files, and delete the earlier run of that name.

    The record decides which of the two is the run: after any exception, and for `place` and `_recover` after a kill.
    """
    final, earlier = f"{kind}/{run}", _hidden(storage, kind, run)
    if existed and storage.size(record_key(kind, run)) is None:
        note(storage, kind, run)
    try:
        if existed and _exists(storage, final):
            storage.move_folder(final, earlier)
        storage.move_folder(unnamed, final)
        note(storage, kind, run, datetime.now(UTC).isoformat(timespec="seconds"))
    except BaseException:
        if not _exists(storage, unnamed):
            if is_recorded(storage, kind, run, final):
                _discard(storage, earlier)
                raise
            storage.move_folder(final, unnamed)
        if _exists(storage, earlier):
            storage.move_folder(earlier, final)
        raise
    _discard(storage, earlier)


def _discard(storage: Storage, earlier: str) -> None:
    """Delete the earlier run, which was hidden."""
    storage.delete_folder(earlier)


def _recover(storage: Storage, kind: str, run: str) -> None:
    """Give the recorded run its name again, if a process was killed while it replaced or removed it."""
    own = f"{kind}/{run}"
    if place(storage, kind, run) == own:
        return
    with claimed(storage, kind, run):
        if (found := place(storage, kind, run)) != own:
            if _exists(storage, own):
                storage.move_folder(own, f"{kind}/.{run}.{new_token()}")
            storage.move_folder(found, own)


def _axes(store: Store, dims: Sequence[str], shape: Sequence[int]) -> list[str]:
    """Return the names of a run's axes: an axis of fewer layers than the store has is no axis `layer` of the store.

    xarray's DataTree would otherwise refuse the store, since axes of one name must agree.
    """
    return [
        "run_layer" if dim == "layer" and length != len(store.layers) else dim
        for dim, length in zip(dims, shape, strict=True)
    ]


def _moved(store: Store, kind: str, run: str, sources: Mapping[str, str]) -> bool:
    """Return whether there is a run that was made from other sources than these."""
    storage = store.contents.storage
    return bool(sources) and sound(store, kind, run) and sources_of(storage, kind, run) != sources


def _derived(store: Store, kind: str, run: str, allowed: bool) -> list[str]:
    """Return the runs made from the present run. Raises StoreError if there are some and it may not be replaced."""
    storage = store.contents.storage
    derived = [each for each in made_from(store, kind, run) if older(storage, *each.split("/")) is None]
    if derived and not allowed and not sound(store, kind, run):
        raise refusal(store, kind, run, f"{kind} run {run!r} is damaged or missing, and its new content would differ")
    return derived


def has_content(
    store: Store,
    kind: str,
    run: str,
    arrays: Mapping[str, Named],
    settings: dict[str, Any],
    sources: Mapping[str, str],
) -> bool:
    """Return whether there is a sound run of this content, made from these sources, perhaps with fewer settings."""
    return not _moved(store, kind, run, sources) and _holds(_kept(store, kind, run), arrays, settings)


def _kept(store: Store, kind: str, run: str) -> _Run | None:
    """Return the arrays and settings of a sound run; None if there is none."""
    return load(store, kind, run) if sound(store, kind, run) else None


def _holds(
    run: _Run | None, arrays: Mapping[str, Named], settings: dict[str, Any], besides: Collection[str] = ()
) -> bool:
    """Return whether all arrays and settings of a run are among these, with equal values; False for None.

    Those named in `besides` are not compared.
    """
    if run is None:
        return False
    kept_arrays, kept = (_without(each, besides) for each in run)
    # As JSON, NaN equals NaN, and a tuple equals a list.
    return all(
        name in arrays and _equal(np.asarray(arrays[name][0]), values) for name, values in kept_arrays.items()
    ) and all(name in settings and _as_json(settings[name]) == _as_json(value) for name, value in kept.items())


def _without(named: Mapping[str, Any], besides: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in named.items() if name not in besides}


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two arrays hold the same values; NaN equals NaN.

    Sums in float64 differ in the last digits from processor to processor, which makes no other result of them.
    """
    if one.shape != other.shape:
        return False
    if one.dtype == other.dtype == np.float64:
        return np.allclose(one, other, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f" and other.dtype.kind == "f")


def _lacks(run: _Run | None, arrays: Mapping[str, Named], settings: dict[str, Any]) -> bool:
    """Return whether a run by an earlier version lacks some of these arrays or settings."""
    return run is None or not (arrays.keys() <= run[0].keys() and settings.keys() <= run[1].keys())


def _as_json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _said(store: Store, kind: str, run: str) -> str:
    """Return a run in words, with who made it if its settings say so."""
    source = load_settings(store, kind, run).get("source")
    return f"{kind} run {run!r}" + (f" (by {source})" if source else "")


def _hidden(storage: Storage, kind: str, run: str) -> str:
    """Return a new hidden name for a run. Deletes hidden runs that a killed process left over an hour ago."""
    for folder in hidden(storage, kind, run):
        if folder != place(storage, kind, run) and storage.folder_age(folder) > _LEFT_SECONDS:
            storage.delete_folder(folder)
    return f"{kind}/.{run}.{new_token()}"


def _exists(storage: Storage, folder: str) -> bool:
    """Return whether a folder contains files."""
    return any(True for _ in storage.list(folder))
