"""Repair a store: compute damaged and quarantined units again, and restore damaged files of the plan.

Nothing else changes. The settings come from the store and are checked like those of a run that resumes. Units are
computed one at a time. Files of the plan (metadata, tables, the model's matrices) are restored from a new plan, each
only if its checksum is the recorded one. An interrupted repair leaves the store no worse than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headspan.config import PrecomputeSettings
from headspan.decode.choice import decoding_processes
from headspan.decode.routes import route
from headspan.errors import StoreError
from headspan.events import Listener, ignore
from headspan.io.locations import Location, location_of
from headspan.io.retry import is_remote
from headspan.io.stores import storage_to_write
from headspan.model.load import load_stored_model
from headspan.run.defaults import resolved
from headspan.run.encoder import prepare
from headspan.run.executors.local import run_units
from headspan.run.planned_sources import PlannedSources, places
from headspan.run.planning import refuse_other_run, restored_plan_files
from headspan.run.precompute import compute
from headspan.run.problems import WHOLE_STORE
from headspan.run.run import Run
from headspan.run.scheduler import Scheduler
from headspan.run.stored_settings import stored_settings
from headspan.run.verify import Verdict, verify
from headspan.shards.urls import expand, local_path, stored_names
from headspan.store.commit_records import CommitRecords
from headspan.store.consolidated import consolidate, copy_differs
from headspan.store.file_checks import faults
from headspan.store.reader import Store
from headspan.store.schema import ROOT_COPY, member_names
from headspan.store.tables import read_shards
from headspan.store.write.unit import StoreWriter


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was computed or written again: units by index, files by path; `verdict` is that of a check afterwards."""

    units: tuple[int, ...]
    files: tuple[str, ...]
    verdict: Verdict


def repair(
    path: str | Path,
    shards: Sequence[str] = (),
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
    **settings: Any,
) -> Repaired:
    """Compute again the units of the store at `path` that are damaged or quarantined.

    Name the `shards`, in the order of the run, if they have moved, or if their names in the store lack secrets.
    `weights` names where the model's weights are now, as for `text_vectors`. `settings` may be `batch_size`, `device`,
    `workers`, `in_flight_bytes` and `allow_pipe`. The default batch size is the store's, which gives the same bytes on
    the same machine. Raises HeadspanError if the model or the shards are not those that the store was made with.
    """
    path = location_of(path, StoreError)
    restored = _restored_root(path)
    store = StoreWriter(path)
    withdrawn = store.commits.withdraw_damaged()
    verdict = verify(Store(path, include_failed=True), on_progress, shards=shards)
    problems = [problem for problem in verdict.problems if problem.of_store]
    if any(problem.where.startswith("moments/") for problem in problems):
        # The moments are added up from groups of units. Units without moments of their own are computed again.
        store.commits.reopen()
        withdrawn |= store.commits.withdraw_damaged()
    quarantined = {unit.index for unit in store.commits.quarantined_units()}
    damaged = {problem.unit for problem in problems} - {WHOLE_STORE} - quarantined - withdrawn
    if not problems and not withdrawn:
        store.finish()
        return Repaired((), restored, verdict)
    stored = settings_of(store, shards, settings)
    # Checked before the model is loaded.
    route(stored.decode)
    urls = _by_planned_names(store, stored_names(expand(stored.shards, stored.allow_pipe)), stored)
    encoder = prepare(stored, lambda: load_stored_model(store.attributes, path, weights, on_progress))
    run_settings = resolved(stored, encoder)
    lost = [problem.where for problem in problems if problem.unit == WHOLE_STORE]
    files = restored_plan_files(store, lost, urls, encoder)
    refuse_other_run(store, run_settings, urls, encoder)
    sources = PlannedSources(read_shards(store.path), urls, member_names(store.attributes))
    done: list[int] = []
    with decoding_processes(run_settings) as decoding:
        run = Run.of(run_settings, store, encoder, sources, on_progress, decoding)
        for chosen, replaces in ((damaged, True), (withdrawn | quarantined, False)):
            units = [unit for unit in store.units if unit.index in chosen]
            with (
                Scheduler(store, only=units) as scheduler,
                closing(run_units(replace(run, replaces=replaces), scheduler, compute)) as records,
            ):
                done += [record.unit for record in records]
    store.finish()
    verdict = verify(Store(path, include_failed=True), on_progress, shards=shards)
    return Repaired(tuple(sorted(done)), (*restored, *files), verdict)


def _restored_root(path: Location) -> tuple[str, ...]:
    """Restore the root's metadata from their copy if they have changed; returns the names of the files restored."""
    name, storage = "zarr.json", storage_to_write(path)
    if storage.size(ROOT_COPY) is None:
        return ()
    written = CommitRecords(storage, 0).planned_files().get(name)
    changed = written is not None and bool(list(faults(storage, {name: written})))
    if changed and storage.checksum(ROOT_COPY) == written:
        storage.put(name, [storage.get(ROOT_COPY)])
    elif changed or not copy_differs(storage):
        return ()
    consolidate(storage)
    return (name,)


def _by_planned_names(store: StoreWriter, urls: dict[str, str], settings: PrecomputeSettings) -> dict[str, str]:
    """The urls by the names that the store has for the shards; `refuse_other_run` then compares size and time."""
    try:
        planned = read_shards(store.path)
    except StoreError:
        # The table of shards itself is damaged. It is written again with the names given now.
        return urls
    if len(planned) != len(urls):
        return urls
    return places(planned, store.attributes, settings.shards, settings.allow_pipe)


def settings_of(store: StoreWriter, shards: Sequence[str], changed: dict[str, Any]) -> PrecomputeSettings:
    """The settings that the store was made with, with the values of `changed`; over `shards` if they are named.

    Raises StoreError if a shard is missing, or if its name in the store lacks its secrets.
    """
    known = store.attributes
    names = list(shards) or list(places(read_shards(store.path), known).values())
    hidden = [name for name in names if is_remote(name) and "…" in name]
    if hidden:
        raise StoreError(
            f"{store.path}: records {hidden[0]} without its secrets, so it cannot be read again; name all shards "
            "after the store, in the order of the run"
        )
    if not shards:
        gone = [name for name in names if not is_remote(name) and not Path(local_path(name)).exists()]
        if gone:
            raise StoreError(
                f"{store.path}: {gone[0]} does not exist any more; name all shards after the store, where they are now "
                "and in the order of the run"
            )
    return stored_settings(store.path, known, names, changed)
