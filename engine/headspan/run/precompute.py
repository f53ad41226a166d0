"""The main job on one page: plan → decode → prefetch → model → emit → store.

Killed at any moment, the same call goes on where the last commit record stands; several calls at once share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from headspan.config import PrecomputeSettings, bad_limit
from headspan.decode.images import DecodedImage
from headspan.decode.in_flight import UnitsInFlight
from headspan.decode.prefetch import prefetch
from headspan.decode.workers import Renderer, decode, renderer
from headspan.decompose.contributions import Contributions, contributions
from headspan.decompose.moments import Moments
from headspan.errors import SourceError, counted
from headspan.escapes import shell_command
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.model.load import load_model
from headspan.run.encoder import Encoder, prepare
from headspan.run.planned_sources import PlannedSources, as_planned
from headspan.run.planning import open_planned
from headspan.run.scheduler import Scheduler
from headspan.run.summary import Summary
from headspan.shards.samples import BadImage, Unit
from headspan.shards.urls import expand, stored_names
from headspan.store.commit_records import UnitRecord
from headspan.store.schema import attributes_of
from headspan.store.tables import read_shards
from headspan.store.write.unit import StoreWriter
from headspan.store.write.workers import other_workers
from headspan.timing import StageTimes

T = TypeVar("T")


def precompute(settings: PrecomputeSettings, on_progress: Listener = ignore) -> Summary:
    """Stream the shards through the encoder and store every kept head's contributions.

    Raises HeadspanError where a source, the model, the settings or the disk do not allow it, or where more images
    are bad than `max_bad` allows; what was committed before stays valid.
    """
    # Before the model, whose weights may take minutes to fetch.
    to_pixels = renderer(settings.decode)
    urls = stored_names(expand(settings.shards, settings.allow_pipe))
    # A store that is gone on with keeps the preprocessing and activation that it was made with.
    made = attributes_of(Path(settings.out))
    encoder = prepare(
        settings,
        lambda: load_model(
            settings.model,
            settings.pretrained,
            settings.image_size,
            weights=settings.weights,
            on_progress=on_progress,
            goes_on=made,
        ),
    )
    if encoder.exact.runs_twice:
        on_progress(Progress(NOTE, 0, None, f"{settings.model} norms its rows before their mean: two passes an image"))
    store = open_planned(settings, urls, encoder, on_progress)
    stored: list[UnitRecord] = []
    times = StageTimes()
    if not store.commits.complete:
        # Whatever says so of a store whose records were lost since: its moments are to be written again.
        store.commits.reopen()
    if not store.commits.complete or any(other_workers(store.path)):
        planned = read_shards(store.path)
        sources = PlannedSources(planned, as_planned(planned, store.attributes, urls))
        bad = [image for record in store.commits.records() for image in record.bad]
        _refuse_bad(settings, store, bad)
        with Scheduler(store) as work:
            with closing(compute(store, work, sources, encoder, to_pixels, settings, on_progress, times)) as records:
                for record in records:
                    stored.append(record)
                    bad += record.bad
                    _refuse_bad(settings, store, bad)
            store.finish()
    return Summary(
        path=str(store.path),
        images=sum(record.images for record in stored),
        bad=sorted((image for record in stored for image in record.bad), key=lambda image: image.row),
        skipped=sum(record.rows for record in store.commits.records()) - sum(record.rows for record in stored),
        quarantined=store.commits.quarantined_units(),
        seconds=times.seconds(),
    )


def compute(
    store: StoreWriter,
    work: Scheduler,
    sources: PlannedSources,
    encoder: Encoder,
    to_pixels: Renderer,
    settings: PrecomputeSettings,
    on_progress: Listener,
    times: StageTimes,
    again: bool = False,
) -> Generator[UnitRecord, None, None]:
    """Compute and commit the units that `work` gives, yielding the record of each that was committed here.

    `again` puts them in the place of units that are committed and damaged.
    """
    store.refuse_damaged_metadata()
    finished, bad = store.size.images - sum(unit.rows for unit in store.unfinished()), 0
    # Told before the first batch too, so that its time is part of the rate that is shown.
    on_progress(Progress("images", finished, store.size.images))
    for units in work.passes():
        in_flight = UnitsInFlight(units, store.samples)
        decoded = decode(
            in_flight.samples(),
            encoder.model.preprocess,
            on_bad=in_flight.note_bad,
            workers=settings.workers,
            # Half before the model, half within decoding.
            in_flight_bytes=settings.in_flight_bytes // 2,
            open_source=sources.open,
            on_read=in_flight.note_read,
            times=times,
            to_pixels=to_pixels,
        )
        # Closed whatever happens, so that no thread outlives a failure.
        with closing(prefetch(decoded, _pixel_bytes, settings.in_flight_bytes // 2)) as images:
            for unit, members in in_flight.by_unit(images):

                def tell(rows: int, before: int = finished, note: str = f"{bad} bad" if bad else "") -> None:
                    on_progress(Progress("images", min(before + rows, store.size.images), store.size.images, note))

                record = compute_unit(store, unit, members, in_flight, encoder, settings.batch_size, tell, times, again)
                work.finished(unit)
                finished += unit.rows
                if record is not None:
                    bad += len(record.bad)
                    yield record


def compute_unit(
    store: StoreWriter,
    unit: Unit,
    images: Iterator[DecodedImage],
    in_flight: UnitsInFlight,
    encoder: Encoder,
    batch_size: int,
    tell: Callable[[int], None],
    times: StageTimes,
    again: bool,
) -> UnitRecord | None:
    """Compute and commit one unit, telling the rows done so far; None where another writer has committed it."""
    size, overflows = store.size, []
    with store.begin(unit, times) as writer:
        moments = Moments.zeros(len(size.layers), size.heads, size.head_dim, encoder.device)
        batches = iter(lambda: _next_batch(images, batch_size, times), [])
        # Where another writer was faster, the images pass by.
        needed = (batch for batch in batches if again or not store.commits.is_done(unit.index))
        # A GPU computes the next batch while this one's numbers travel and are written.
        for batch, result in one_ahead(_launch(batch, encoder, moments, times) for batch in needed):
            with times.of("model"):
                good, arrays = result.good, result.arrays
            rows = np.array([image.row for image in batch])
            overflows += store.overflows(unit, rows[~good])
            with times.of("storing"):
                writer.put(rows[good], {name: array[good] for name, array in arrays.items()})
            tell(batch[-1].row + 1 - unit.first_row)
        crc32c, bad = in_flight.read_of(unit)
        with times.of("storing"):
            record = writer.commit(moments, [*bad, *overflows], crc32c, again)
    tell(unit.rows)
    return record


def _next_batch(images: Iterator[DecodedImage], size: int, times: StageTimes) -> list[DecodedImage]:
    with times.of("waiting for images"):
        return list(islice(images, size))


def _launch(
    batch: list[DecodedImage], encoder: Encoder, moments: Moments, times: StageTimes
) -> tuple[list[DecodedImage], Contributions]:
    """Give the device a batch; nothing here waits for it."""
    with times.of("model"):
        result = contributions(encoder([image.pixels for image in batch]), encoder.tower, encoder.carried)
        moments.add(result.heads, result.norm, result.finite)
    return batch, result


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """`items`, each handed out once the one after it has been made."""
    stream = iter(items)
    for item in islice(stream, 1):
        for following in stream:
            yield item
            item = following
        yield item


def _refuse_bad(settings: PrecomputeSettings, store: StoreWriter, bad: list[BadImage]) -> None:
    """Raise SourceError where more images are bad than the settings allow."""
    images = store.size.images
    if settings.max_bad is not None and len(bad) > bad_limit(settings.max_bad, images):
        last = bad[-1]
        lists = shell_command(["headspan", "info", str(store.path), "--bad"])
        raise SourceError(
            f"{store.path}: {len(bad):,} of {counted(images, 'image')} {'is' if len(bad) == 1 else 'are'} bad, "
            f"more than --max-bad {settings.max_bad} allows "
            f"(row {last.row}, {last.key} in {last.url}: {last.reason}); see {lists}, mend "
            "the shards, or allow more to go on"
        )


def _pixel_bytes(image: DecodedImage) -> int:
    return image.pixels.nbytes
