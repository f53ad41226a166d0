"""The main job on one page: plan → decode → prefetch → model → decompose → store.

A run that is killed at any moment continues from its last commit record when the same call is repeated. Several
processes may make the same call at once; each unit is committed by one of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import TypeVar

from headspan.config import PrecomputeSettings
from headspan.decode.batches import Batch, DecodedSpan, rebatch
from headspan.decode.choice import check_decoding, decoding_processes, start_early
from headspan.decode.in_flight import UnitsInFlight
from headspan.decode.prefetch import prefetch
from headspan.decode.processes.kept import DecodingProcesses
from headspan.decode.routes import route
from headspan.decompose.contributions import Contributions, contributions
from headspan.decompose.moments import Moments
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.io.locations import location_of
from headspan.io.stores import storage_at
from headspan.model.load import load_model
from headspan.ray_settings import Ray
from headspan.run.bad_limit import refuse_bad
from headspan.run.defaults import as_stored, resolved, said
from headspan.run.devices import named_devices
from headspan.run.encoder import prepare, refuse_impossible
from headspan.run.executors.devices import DeviceProcesses
from headspan.run.executors.local import run_units
from headspan.run.executors.ray import RayWorkers
from headspan.run.plan_ahead import begun_plan
from headspan.run.planned_sources import PlannedSources, as_planned
from headspan.run.planning import open_planned
from headspan.run.run import Run
from headspan.run.scheduler import Scheduler
from headspan.run.summary import Summary
from headspan.run.unit_size import planned_unit_images
from headspan.shards.samples import BadImage, Unit
from headspan.shards.urls import expand, stored_names
from headspan.store.commit_records import COMPLETE, UnitRecord
from headspan.store.schema import attributes_of, member_names
from headspan.store.tables import read_shards
from headspan.store.worker_states import other_workers
from headspan.store.write.rows import PendingCommit
from headspan.timing import StageTimes

T = TypeVar("T")


def precompute(
    settings: PrecomputeSettings,
    on_progress: Listener = ignore,
    on_commit: Callable[[UnitRecord], None] = lambda record: None,
    executor: Ray | None = None,
) -> Summary:
    """Stream the shards through the encoder and store the head outputs of every requested layer.

    Each of several devices gets a process of its own, unless an `executor` computes elsewhere. `on_commit` receives the
    record of each unit that this process commits.

    Raises HeadspanError if a source, the model, the settings or the disk prevents the run, or if more images are bad
    than `max_bad` allows. Units that were committed before stay valid.
    """
    computing = DeviceProcesses(settings) if executor is None else RayWorkers(executor, settings.device, on_progress)
    with computing as devices, decoding_processes(settings) as decoding:
        return _precompute(devices.planning(settings), on_progress, on_commit, devices, decoding)


def _precompute(
    settings: PrecomputeSettings,
    on_progress: Listener,
    on_commit: Callable[[UnitRecord], None],
    devices: DeviceProcesses | RayWorkers,
    decoding: DecodingProcesses,
) -> Summary:
    # Checked before the model is loaded, whose weights may take minutes to download.
    route(settings.decode)
    notes: list[str] = []
    urls = stored_names(expand(settings.shards, settings.allow_pipe, notes.append))
    for note in notes:
        on_progress(Progress(NOTE, 0, None, note))
    # An existing store keeps the preprocessing and the activation that it was made with.
    out = location_of(settings.out)
    existing = attributes_of(out)
    settings = as_stored(settings, existing)
    first = named_devices(settings.device)[0]
    check_decoding(settings.decode, first)
    device = first.type
    if not devices and storage_at(out).size(COMPLETE) is None:
        start_early(decoding, settings, device)
    unit_images = settings.unit_images or planned_unit_images(device, settings.emit)
    # The shards of a new store are read while the model is loaded.
    with begun_plan(out, urls, unit_images, settings.member_names) as plan:
        if plan is not None:
            plan.refuse_unreadable()
        encoder = prepare(
            settings,
            lambda: load_model(
                settings.model,
                settings.pretrained,
                settings.image_size,
                weights=settings.weights,
                on_progress=on_progress,
                resumed=existing,
                judge=partial(refuse_impossible, settings),
            ),
        )
        run_settings = resolved(settings, encoder)
        on_progress(Progress(NOTE, 0, None, said(run_settings, encoder)))
        if encoder.exact.runs_twice:
            slow = f"{settings.model} normalises its rows before their mean, so each image takes two passes"
            on_progress(Progress(NOTE, 0, None, slow))
        store = open_planned(run_settings, urls, encoder, plan, on_progress, devices.count)
    stored: list[UnitRecord] = []
    completed_by = ""
    seconds = StageTimes().seconds()
    if not store.commits.complete:
        # Records may have been lost since the store was complete; its moments must then be written again.
        store.commits.reopen()
    if not store.commits.complete or any(other_workers(store.storage, states=False)):
        if devices:
            # Each of them loads the model again.
            del encoder
            return devices.run(run_settings, store, on_progress)
        planned = read_shards(store.path)
        names = member_names(store.attributes)
        sources = PlannedSources(planned, as_planned(planned, store.attributes, urls), names)
        run = Run.of(run_settings, store, encoder, sources, on_progress, decoding)
        # All records are read only where they count.
        earlier = [] if settings.max_bad is None else store.commits.records()
        bad = [image for record in earlier for image in record.bad]
        refuse_bad(store, bad, settings.max_bad)
        with Scheduler(store, device=str(encoder.device)) as scheduler:
            with closing(run_units(run, scheduler, compute)) as records:
                for record in records:
                    stored.append(record)
                    bad += record.bad
                    on_commit(record)
                    refuse_bad(store, bad, settings.max_bad)
            for pause in scheduler.finish():
                time.sleep(pause.seconds)
            completed_by = scheduler.completed_by
        seconds = run.times.seconds()
    return Summary(
        path=str(store.path),
        images=sum(record.images for record in stored),
        bad=sorted((image for record in stored for image in record.bad), key=lambda image: image.row),
        skipped=store.finished_rows - sum(record.rows for record in stored),
        quarantined=store.commits.quarantined_units(),
        seconds=seconds,
        completed_by=completed_by,
    )


def compute(run: Run, units: Iterator[Unit]) -> Generator[tuple[Unit, UnitRecord | None], None, None]:
    """Compute and commit `units`; yields each with its record, or with None if another worker committed it first."""
    span_images = run.decoder.span_images(run.batch_size)
    in_flight = UnitsInFlight(units, lambda unit: run.store.spans(unit, span_images))
    decoded = run.decoder.decode(in_flight.spans())
    # One more span waits in the thread that runs ahead.
    waiting_bytes = run.waiting_bytes - span_images * run.decoder.image_bytes
    # Closed in any case, so that no thread outlives a failure.
    with closing(prefetch(decoded, lambda span: span.pixel_bytes, waiting_bytes)) as spans, run.store.writing():
        computed = ((unit, compute_unit(run, unit, part, in_flight)) for unit, part in in_flight.by_unit(spans))
        # A unit is committed while the next one is computed.
        for unit, committed in one_ahead(computed):
            with run.times.of("storing"):
                record = committed.result()
            yield unit, record


def compute_unit(run: Run, unit: Unit, spans: Iterator[DecodedSpan], in_flight: UnitsInFlight) -> PendingCommit:
    """Compute one unit from its decoded spans, and begin to commit it. The result is the unit's record, or None if
    another worker committed it first."""
    store, size = run.store, run.store.size
    overflows: list[BadImage] = []
    with store.begin(unit, run.times) as writer:
        # A store of an earlier version, which has no moments of embeddings, is continued without them.
        joint = size.joint if store.has_embedding_moments else None
        moments = Moments.zeros(len(size.layers), size.heads, size.head_dim, run.encoder.device, joint)
        batches = run.times.each("waiting for images", rebatch(spans, run.batch_size))
        # A GPU computes the next batch while the numbers of this one are copied and written.
        for batch, result in one_ahead(_launch(run, batch, moments) for batch in _needed(run, unit, batches)):
            rows = batch.rows
            with run.times.of("model"):
                good, arrays = result.good, result.arrays
            # The device has read the pixels, since the batch's numbers have arrived.
            batch.release()
            overflows += store.overflows(unit, rows[~good])
            with run.times.of("storing"):
                writer.put(rows, good, arrays)
            # Threads write them meanwhile; their memory is used again as soon as it is written.
            del result, arrays
            run.progress.report(int(rows[-1]) + 1 - unit.first_row)
        crc32c, bad = in_flight.read_of(unit)
        run.progress.computed(unit.rows)
        with run.times.of("storing"):
            return writer.commit_behind(moments, [*bad, *overflows], crc32c, run.replaces)


def _needed(run: Run, unit: Unit, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches of a unit; those that come after another worker has committed it are released and left out."""
    for batch in batches:
        if run.replaces or not run.store.commits.is_done(unit.index):
            yield batch
        else:
            batch.release()


def _launch(run: Run, batch: Batch, moments: Moments) -> tuple[Batch, Contributions]:
    """Start the computation of a batch; nothing here waits for the device."""
    encoder = run.encoder
    with run.times.of("model"):
        result = contributions(encoder(batch), encoder.tower, encoder.through_pool)
        moments.add(result.heads, result.norm, result.finite, result.embedding)
    return batch, result


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield each of `items` after the next one has been computed."""
    stream = iter(items)
    for item in islice(stream, 1):
        for following in stream:
            yield item
            item = following
        yield item
