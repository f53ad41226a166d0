"""Stream a store's images through its model once, and compute their embeddings with each set of heads pruned.

Images are read from their shards and decoded as the store's were, unit by unit, with the batches of `precompute`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from headspan.config import AUTO, ResolvedSettings
from headspan.decode.batches import Batch, DecodedSpan, rebatch
from headspan.decode.choice import decoding_processes
from headspan.decode.in_flight import UnitsInFlight
from headspan.decode.prefetch import prefetch
from headspan.decompose.transfer import Transfer, to_host
from headspan.errors import SettingsError, SourceError
from headspan.events import NOTE, Listener, Progress
from headspan.head_names import Head
from headspan.model.kept import kept_model
from headspan.model.pruned import by_layer
from headspan.model.variants import embeddings_of_variants
from headspan.run.defaults import resolved, said
from headspan.run.devices import named_devices
from headspan.run.encoder import Encoder, prepare
from headspan.run.image_encoder import computed_precision
from headspan.run.pixels import model_input
from headspan.run.precompute import one_ahead
from headspan.run.run import decoder_for
from headspan.run.stored_settings import stored_settings
from headspan.shards.images import ImageReader
from headspan.shards.samples import SampleSpan, Unit
from headspan.store.commit_records import UnitRecord
from headspan.store.reader import Store
from headspan.store.schema import decoding
from headspan.store.tables import read_spans
from headspan.timing import StageTimes


class UnitRows(NamedTuple):
    """A unit of a store, and those of its rows whose images are wanted, ascending; at least one."""

    unit: int
    rows: Int64[np.ndarray, " image"]


class Computed(NamedTuple):
    """The embeddings of some images of a unit that follow one another."""

    unit: int
    # Their places among all images that are wanted.
    places: slice
    embeddings: Float32[np.ndarray, "set image joint"]
    # Whether these are the unit's last images.
    last: bool


class LivePass:
    """A store's model on its device, ready to compute units."""

    def __init__(
        self,
        store: Store,
        sets: Sequence[Sequence[Head]],
        on_progress: Listener,
        weights: str | Path | None,
        device: str,
        batch_size: int | None,
    ) -> None:
        """Load the model. `batch_size` None is the store's on such a device.

        Raises SettingsError if the device or a head does not exist, and ModelError if the model cannot be loaded.
        """
        self._store, self._sets, self._on_progress = store, sets, on_progress
        self._settings, self._encoder = _prepared(store, on_progress, weights, device, batch_size)
        for heads in sets:
            by_layer(self._encoder.tower, heads)

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the last digits of the embeddings, by what it is called in an error."""
        return {
            "devices": self._encoder.device.type,
            "precision": self._settings.precision,
            "batch sizes": self._settings.batch_size,
        }

    def embeddings(
        self,
        units: Sequence[UnitRows],
        finished: Collection[int],
        open_source: Callable[[str], ImageReader],
        check: Callable[[UnitRecord], None],
    ) -> Generator[Computed, None, None]:
        """The embeddings of the images of `units`, except those that are `finished`, in order and batch by batch.

        `open_source` opens a planned shard by name. `check` is called before a unit is read, and may raise.

        Raises SourceError if an image has changed or cannot be read, and SettingsError if the GPU's memory is full.
        """
        of_unit = {each.unit: each for each in units}
        records = {record.unit: record for record in self._store.contents.records}
        ends = dict(zip(of_unit, np.cumsum([len(each.rows) for each in units]).tolist(), strict=True))
        settings, on_progress = self._settings, self._on_progress
        total, done = sum(len(each.rows) for each in units), sum(len(of_unit[unit].rows) for unit in finished)

        def begun() -> Iterator[Unit]:
            for unit, rows in units:
                if unit not in finished:
                    check(records[unit])
                    # Up to the last image that is wanted, which tells the end of the unit.
                    first_row = records[unit].first_row
                    yield Unit(unit, first_row, int(rows[-1]) + 1 - first_row)

        on_progress(Progress("images", done, total))
        with decoding_processes(settings) as processes:
            decoder = decoder_for(settings, self._encoder, open_source, StageTimes(), on_progress, processes)
            span_images = decoder.span_images(self._settings.batch_size)
            in_flight = UnitsInFlight(begun(), lambda unit: self._spans(of_unit[unit.index], span_images))
            waiting_bytes = settings.in_flight_bytes // 2 - span_images * decoder.image_bytes
            decoded = decoder.decode(in_flight.spans())
            with closing(prefetch(decoded, lambda span: span.pixel_bytes, waiting_bytes)) as spans:
                for unit, part in in_flight.by_unit(spans):
                    end = ends[unit.index]
                    place = end - len(of_unit[unit.index].rows)
                    # A GPU computes the next batch while the numbers of this one are copied.
                    for batch, result in one_ahead(
                        map(self._launch, rebatch(map(_all_good, part), self._settings.batch_size))
                    ):
                        found = result.arrays()["embeddings"]
                        # The device has read the pixels, since the batch's numbers have arrived.
                        batch.release()
                        images = slice(place, place + len(batch.rows))
                        place = images.stop
                        yield Computed(unit.index, images, found, place == end)
                        done += len(batch.rows)
                        on_progress(Progress("images", done, total))
                    assert place == end, "a decoder returns each image, or the reason why there is none"

    def _spans(self, unit: UnitRows, images: int) -> Iterator[SampleSpan]:
        for span in read_spans(self._store.path, unit.unit, images):
            places = np.flatnonzero(np.isin(span.rows, unit.rows))
            if len(places):
                yield span if len(places) == len(span) else span.chosen(places)

    def _launch(self, batch: Batch) -> tuple[Batch, Transfer]:
        """Start the computation of a batch; nothing here waits for the device."""
        encoder = self._encoder
        try:
            pixels = model_input(batch.parts, encoder.model.preprocess, encoder.device, encoder.tower.dtype)
            found = embeddings_of_variants(encoder.tower, pixels, self._sets)
        except torch.cuda.OutOfMemoryError as error:
            size = self._settings.batch_size
            raise SettingsError(
                f"batch_size {size} does not fit the memory of {encoder.device}; give a smaller one"
            ) from error
        return batch, to_host({"embeddings": found}, encoder.device)


def _prepared(
    store: Store, on_progress: Listener, weights: str | Path | None, device: str, batch_size: int | None
) -> tuple[ResolvedSettings, Encoder]:
    attributes = store.attributes
    on = named_devices(device)[0]
    if batch_size is None:
        same = str(attributes.get("backend", "")).endswith(f" on {on.type}")
        batch_size = attributes.get("made_with", {}).get("batch_size") if same else None
    decode = decoding(attributes)
    if decode == "gpu" and on.type != "cuda":
        decode = "fast"
        what = f"{store.path}: its images were decoded on a GPU, and are decoded by the CPU now, to pixels that differ"
        on_progress(Progress(NOTE, 0, None, what))
    changed = {
        "device": str(on),
        "precision": computed_precision(on.type, attributes["precision"]),
        "decode": decode,
        "batch_size": AUTO if batch_size is None else batch_size,
        # Only embeddings are computed, so that no memory is needed for anything else.
        "emit": ("heads",),
        "layers": store.layers,
    }
    settings = stored_settings(store.path, attributes, [shard.url for shard in store.shards()], changed)
    encoder = prepare(settings, lambda: kept_model(attributes, store.path, weights, on_progress))
    found = resolved(settings, encoder)
    on_progress(Progress(NOTE, 0, None, said(found, encoder)))
    return found, encoder


def _all_good(span: DecodedSpan) -> DecodedSpan:
    """The span itself. Raises SourceError if one of its images, which the store holds, cannot be decoded now."""
    for bad in span.bad:
        raise SourceError(
            f"{bad.url}: {bad.key} could be decoded when the store was made, but cannot now: {bad.reason}"
        )
    return span
