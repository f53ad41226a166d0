"""A damaged store made whole: what `verify` finds is made again from the shards and the model, and nothing else.

The settings come from the store and are checked like those of a run that goes on. Units are computed again one at a
time; files of the plan (metadata, tables, the model's matrices) are taken from a plan made anew where their checksum
proves that they are the ones that were lost. Interrupted, a store is no worse than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.config import PrecomputeSettings
from headspan.decode.workers import renderer
from headspan.errors import StoreError
from headspan.events import Listener, ignore
from headspan.io.local import LocalStorage
from headspan.io.retry import is_remote
from headspan.model.load import load_stored_model
from headspan.run.encoder import prepare
from headspan.run.planned_sources import PlannedSources, places
from headspan.run.planning import refuse_other_run, restored_plan_files
from headspan.run.precompute import compute
from headspan.run.scheduler import Scheduler
from headspan.run.verify import WHOLE_STORE, Verdict, verify
from headspan.shards.urls import expand, local_path, stored_names
from headspan.store.commit_records import CommitRecords
from headspan.store.file_checks import faults
from headspan.store.reader import Store
from headspan.store.schema import ROOT_COPY, decoding
from headspan.store.tables import read_shards
from headspan.store.write.unit import StoreWriter
from headspan.timing import StageTimes
from headspan.user_paths import expand_user


@dataclass(frozen=True, slots=True)
class Repaired:
    """What was made again: units by their index and files by their path; and what a second check found."""

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
    """Compute again the units of the store at `path` that are damaged, or were set aside.

    `shards` are needed where the store's names of them lack their secrets, or they lie elsewhere than they did; they
    are named in the order of the run. `weights` says where the model's weights lie now, as for `text_vectors`.
    `settings` may be `batch_size`, `device`, `workers`, `in_flight_bytes` and `allow_pipe`; by default the batch size
    is the store's, which on the same machine gives the same bytes. Raises HeadspanError where model or shards are not
    those that the store was made with.
    """
    path = expand_user(path, StoreError)
    root = _restored_root(path)
    store = StoreWriter(path)
    withdrawn = store.commits.withdraw_damaged()
    verdict = verify(Store(path, include_failed=True), on_progress, shards=shards)
    problems = [problem for problem in verdict.problems if problem.of_store]
    if any(problem.where.startswith("moments/") for problem in problems):
        # Added up again from the groups; those whose moments are not kept are computed again.
        store.commits.reopen()
        withdrawn |= store.commits.withdraw_damaged()
    aside = {unit.index for unit in store.commits.quarantined_units()}
    damaged = {problem.unit for problem in problems} - {WHOLE_STORE} - aside - withdrawn
    if not problems and not withdrawn:
        store.finish()
        return Repaired((), root, verdict)
    run = settings_of(store, shards, settings)
    to_pixels = renderer(run.decode)
    urls = stored_names(expand(run.shards, run.allow_pipe))
    urls = _by_planned_names(store, urls, run)
    encoder = prepare(run, lambda: load_stored_model(store.attributes, path, weights, on_progress))
    whole = [problem.where for problem in problems if problem.unit == WHOLE_STORE]
    files = restored_plan_files(store, whole, urls, encoder)
    refuse_other_run(store, run, urls, encoder)
    sources = PlannedSources(read_shards(store.path), urls)
    done: list[int] = []
    for chosen, again in ((damaged, True), (withdrawn | aside, False)):
        units = [unit for unit in store.units if unit.index in chosen]
        with (
            Scheduler(store, only=units) as work,
            closing(compute(store, work, sources, encoder, to_pixels, run, on_progress, StageTimes(), again)) as made,
        ):
            done += [record.unit for record in made]
    store.finish()
    return Repaired(
        tuple(sorted(done)), (*root, *files), verify(Store(path, include_failed=True), on_progress, shards=shards)
    )


def _restored_root(path: Path) -> tuple[str, ...]:
    """Put the root's metadata back from their copy where they are not as they were written; returns what was mended."""
    name, storage = "zarr.json", LocalStorage(path)
    if storage.size(ROOT_COPY) is None:
        return ()
    written = CommitRecords(storage, 0).planned_files().get(name)
    if written is None or not list(faults(storage, {name: written})) or storage.checksum(ROOT_COPY) != written:
        return ()
    storage.put(name, [storage.get(ROOT_COPY)])
    return (name,)


def _by_planned_names(store: StoreWriter, urls: dict[str, str], run: PrecomputeSettings) -> dict[str, str]:
    """The shards by the names that they had when they were planned; size and time tell whether they are the ones."""
    try:
        planned = read_shards(store.path)
    except StoreError:
        # The table is what is damaged, and is made again from the names of today.
        return urls
    if len(planned) != len(urls):
        return urls
    return places(planned, store.attributes, run.shards, run.allow_pipe)


def settings_of(store: StoreWriter, shards: Sequence[str], changed: dict[str, Any]) -> PrecomputeSettings:
    """The settings with which the store was made, from `shards` if they are named."""
    known = store.attributes
    made_with = known.get("made_with", {})
    names = list(shards) or list(places(read_shards(store.path), known).values())
    hidden = [name for name in names if is_remote(name) and "…" in name]
    if hidden:
        raise StoreError(
            f"{store.path}: keeps {hidden[0]} without its secrets, so it cannot be read again; name the shards after "
            "the store"
        )
    if not shards:
        gone = [name for name in names if not is_remote(name) and not Path(local_path(name)).is_file()]
        if gone:
            raise StoreError(
                f"{store.path}: {gone[0]} is not there any more; name the shards where they lie now after the store, "
                "in the order of the run"
            )
    given = {
        "shards": names,
        "out": str(store.path),
        "model": known["model"],
        "pretrained": known["pretrained"],
        # Those carried through an attention pooling are before the layer that pools.
        "layers": [*store.size.through_pool, *store.size.layers],
        "emit": known["emit"],
        "precision": known["precision"],
        "decode": decoding(known),
        "image_size": known.get("image_size"),
        "image_member": known.get("image_member"),
        "caption_member": known.get("caption_member"),
        "caption_json": known.get("caption_json"),
        "unit_images": store.size.unit_images,
        "batch_size": made_with.get("batch_size", 32),
        "device": made_with.get("device", "auto"),
    }
    return PrecomputeSettings.from_dict({**given, **changed})
