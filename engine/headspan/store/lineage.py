"""Which run an analysis's run was made from, and whether that run has changed since.

A run keeps in its attribute `lineage` a checksum of its own content, and the checksums of the runs that it was made
from, as they were then. Runs of earlier versions have no such attribute. They count as made from the present run of the
same name; when that one is replaced or removed, `note_sources` first writes down which one it was, in
`records/lineage/<kind>/<run>.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headspan.errors import StoreError
from headspan.io.remembered import remembered
from headspan.io.storage import Storage
from headspan.store.opened import OpenStore
from headspan.store.result_files import files_of, making, place, recorded
from headspan.store.schema import RECORDS

# The attribute of a run that holds its lineage.
LINEAGE = "lineage"
# The kind of run that runs of a kind are made from, under the same name.
SOURCE = {"labels": "textspan", "ccs": "labels", "truth": "ccs"}
# Kinds of runs that are made from others in their additions alone, such as names, which no further run depends on.
OF_ADDITIONS = ("features",)
# An array with the names of its axes.
Named = tuple[np.ndarray, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Lineage:
    """What identifies a result, and what it was made from."""

    # Checksum of its content.
    checksum: str
    # Checksums of the runs that it was made from, by `<kind>/<run>`.
    made_from: Mapping[str, str] = field(default_factory=dict)
    # The first of these runs that was replaced or removed since; None if there is none.
    older: str | None = None


def content_checksum(
    arrays: Mapping[str, Named],
    settings: Mapping[str, Any],
    made_from: Mapping[str, str] | None = None,
    additions: Collection[str] = (),
) -> str:
    """Return the SHA-256 of a run's content: its arrays, its settings, and the checksums of what it was made from.

    `additions` are left out, and with them the runs that they were made from.
    """
    own = {name: value for name, value in settings.items() if name not in additions}
    digest = hashlib.sha256(json.dumps([own, {} if additions else dict(made_from or {})], sort_keys=True).encode())
    for name, (values, dims) in sorted(arrays.items()):
        if name in additions:
            continue
        digest.update(json.dumps([name, values.dtype.str, values.shape, dims]).encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def lineage_of(store: OpenStore, kind: str, run: str) -> Lineage:
    """Return the lineage of a run, and whether a run that it was made from has changed."""
    storage = remembered(store.contents.storage)
    return Lineage(checksum_of(storage, kind, run), sources_of(storage, kind, run), older(storage, kind, run))


def checksum_of(storage: Storage, kind: str, run: str) -> str:
    """Return the checksum of a run: of its content, or for a run of an earlier version of its files; "" without one."""
    kept = _attribute(storage, kind, run)
    if "checksum" in kept:
        return str(kept["checksum"])
    folder = place(storage, kind, run)
    found: Mapping[str, tuple[int, int]] = {}
    with suppress(StoreError):
        found = recorded(storage, kind, run)
    if not found:
        found = {f"{kind}/{run}{key.removeprefix(folder)}": storage.checksum(key) for key in files_of(storage, folder)}
    own = sorted([name, *about] for name, about in found.items() if name.startswith(f"{kind}/{run}/"))
    return hashlib.sha256(json.dumps(own).encode()).hexdigest() if own else ""


def sources_of(storage: Storage, kind: str, run: str) -> dict[str, str]:
    """Return the checksums, at that time, of the runs that a run was made from."""
    kept = _attribute(storage, kind, run).get("made_from") or _noted(storage, kind, run)
    if kept or kind not in SOURCE:
        return dict(kept or {})
    source = f"{SOURCE[kind]}/{run}"
    found = checksum_of(storage, SOURCE[kind], run)
    return {source: found} if found else {}


def older(storage: Storage, kind: str, run: str) -> str | None:
    """Return the run that a run was made from and that was replaced or removed since; None if there is none."""
    for source, checksum in sources_of(storage, kind, run).items():
        origin, _, name = source.partition("/")
        if checksum_of(storage, origin, name) != checksum:
            return source
        if origin not in OF_ADDITIONS and (further := older(storage, origin, name)) is not None:
            return further
    return None


def refuse_older(store: OpenStore, kind: str, run: str) -> None:
    """Raise StoreError if a run was made from a run that was replaced or removed since."""
    storage = remembered(store.contents.storage)
    source = older(storage, kind, run)
    if source is None:
        return
    again: list[str] = []
    each: str | None = kind
    while each is not None and older(storage, each, run) is not None:
        again.insert(0, f"{making(each, run)} --overwrite")
        each = SOURCE.get(each)
    gone = not checksum_of(storage, *source.split("/"))
    if gone:
        again.insert(0, making(*source.split("/")))
    raise StoreError(
        f"{store.path}: {kind}/{run} is of an older {source}, which was {'removed' if gone else 'replaced'} since; run "
        f"{', then '.join(again)}"
    )


def note_sources(storage: Storage, kind: str, run: str) -> None:
    """Write down what the runs of earlier versions that were made from `<kind>/<run>` were made from.

    To be called before that run is replaced or removed. What is written is true before and after.
    """
    for derived in (each for each, source in SOURCE.items() if source == kind):
        if _attribute(storage, derived, run).get("made_from") or _noted(storage, derived, run):
            continue
        own, source = checksum_of(storage, derived, run), checksum_of(storage, kind, run)
        if own and source:
            content = {"checksum": own, "made_from": {f"{kind}/{run}": source}}
            storage.put(noted_key(derived, run), [json.dumps(content).encode()])


def noted_key(kind: str, run: str) -> str:
    """Return the key of the file in which `note_sources` writes."""
    return f"{RECORDS}/lineage/{kind}/{run}.json"


def _attribute(storage: Storage, kind: str, run: str) -> dict[str, Any]:
    """Return the attribute `lineage` of a run; nothing if it has none or cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        metadata = json.loads(storage.get(f"{place(storage, kind, run)}/zarr.json"))
        return dict(metadata["attributes"][LINEAGE])
    return {}


def _noted(storage: Storage, kind: str, run: str) -> dict[str, str]:
    """Return what `note_sources` wrote about this run; nothing if it wrote about an earlier one of that name."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        found = json.loads(storage.get(noted_key(kind, run)))
        if found["checksum"] == checksum_of(storage, kind, run):
            return {str(source): str(checksum) for source, checksum in found["made_from"].items()}
    return {}
