"""The main job on one page: plan → decode → prefetch → model → emit → store.

Killed at any moment, the same call goes on where the last commit record stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import TypeVar

import numpy as np

from headspan.config import PrecomputeSettings
from headspan.decode import decode
from headspan.emit.contributions import Contributions, contributions
from headspan.emit.moments import Moments
from headspan.model.encoder import Encoder, prepare
from headspan.prefetch import prefetch
from headspan.records import BadImage, DecodedImage, Listener, Progress, Summary, Unit, ignore
from headspan.sources import expand
from headspan.store.planning import open_planned
from headspan.store.writer import StoreWriter

T = TypeVar("T")


def precompute(settings: PrecomputeSettings, listen: Listener = ignore) -> Summary:
    """Stream the shards through the encoder and store every kept head's contributions.

    Raises HeadspanError where a source, the model, the settings or the disk do not allow it; what was
    committed before stays valid.
    """
    # Before the model, whose weights may take minutes to fetch.
    urls = expand(settings.shards)
    encoder = prepare(settings)
    store = open_planned(settings, urls, encoder, listen)
    units = store.unfinished()
    skipped = store.size.images - sum(unit.rows for unit in units)
    bad: list[BadImage] = []
    decoded = decode(
        store.samples(units),
        encoder.model.preprocess,
        on_bad=bad.append,
        workers=settings.workers,
        # Half before the model, half within decoding.
        in_flight_bytes=settings.in_flight_bytes // 2,
    )
    finished = skipped
    # Closed whatever happens, so that no thread outlives a failure.
    with closing(prefetch(decoded, _pixel_bytes, settings.in_flight_bytes // 2)) as images:
        for unit, members in by_unit(images, units):
            for done in compute_unit(store, unit, members, bad, encoder, settings.batch_size):
                listen(Progress("images", finished + done, store.size.images, f"{len(bad)} bad" if bad else ""))
            finished += unit.rows
    store.finish()
    return Summary(str(store.path), store.size.images - skipped - len(bad), bad, skipped)


def compute_unit(
    store: StoreWriter,
    unit: Unit,
    images: Iterator[DecodedImage],
    bad: list[BadImage],
    encoder: Encoder,
    batch_size: int,
) -> Iterator[int]:
    """Compute and commit one unit, yielding the rows done so far; failures are added to `bad`."""
    size, writer = store.size, store.begin(unit)
    moments = Moments.zeros(len(size.layers), size.heads, size.head_dim, encoder.device)
    batches = iter(lambda: list(islice(images, batch_size)), [])
    # A GPU computes the next batch while this one's numbers travel and are written.
    for batch, result in one_ahead(_launch(batch, encoder, moments) for batch in batches):
        good, rows = result.good, np.array([image.row for image in batch])
        bad.extend(store.overflows(unit, rows[~good]))
        writer.put(rows[good], {name: array[good] for name, array in result.arrays.items()})
        yield batch[-1].row + 1 - unit.first_row
    writer.commit(moments, [image for image in bad if unit.first_row <= image.row < unit.first_row + unit.rows])
    yield unit.rows


def _launch(batch: list[DecodedImage], encoder: Encoder, moments: Moments) -> tuple[list[DecodedImage], Contributions]:
    """Give the device a batch; nothing here waits for it."""
    result = contributions(encoder([image.pixels for image in batch]), encoder.tower)
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


def by_unit(images: Iterable[DecodedImage], units: Sequence[Unit]) -> Iterator[tuple[Unit, Iterator[DecodedImage]]]:
    """Each unit with its own images, which may be none; a unit's images must be taken before the next unit."""
    stream = iter(images)
    ahead = next(stream, None)

    def members(end: int) -> Iterator[DecodedImage]:
        nonlocal ahead
        while ahead is not None and ahead.row < end:
            yield ahead
            ahead = next(stream, None)

    for unit in units:
        yield unit, members(unit.first_row + unit.rows)


def _pixel_bytes(image: DecodedImage) -> int:
    return image.pixels.nbytes
