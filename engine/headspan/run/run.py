"""The objects that all units of a run use: store, encoder, decoder, times and progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from headspan.config import ResolvedSettings
from headspan.decode.choice import decoder_of
from headspan.decode.decoder import Decoder
from headspan.decode.processes.kept import DecodingProcesses
from headspan.events import NOTE, Listener, Progress
from headspan.run.encoder import Encoder
from headspan.run.pinned import pinned
from headspan.run.planned_sources import PlannedSources
from headspan.run.progress import ImageProgress
from headspan.shards.images import ImageReader
from headspan.store.write.unit import StoreWriter
from headspan.timing import StageTimes


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that computing a unit needs. `precompute` and `repair` build it, and the executor passes it on."""

    store: StoreWriter
    encoder: Encoder
    decoder: Decoder
    batch_size: int
    # Memory of decoded images that wait for the model; the decoder has a limit of its own.
    waiting_bytes: int
    times: StageTimes
    progress: ImageProgress
    # Whether the units replace committed ones that are damaged.
    replaces: bool = False

    @classmethod
    def of(
        cls,
        settings: ResolvedSettings,
        store: StoreWriter,
        encoder: Encoder,
        sources: PlannedSources,
        on_progress: Listener,
        processes: DecodingProcesses,
    ) -> Run:
        """The run of `settings`: half of its memory in flight is for decoding, half for images that are decoded.

        `processes` are those of `decoding_processes`.
        """
        times = StageTimes()
        decoder = decoder_for(settings, encoder, sources.open, times, on_progress, processes)
        half = settings.in_flight_bytes // 2
        return cls(store, encoder, decoder, settings.batch_size, half, times, ImageProgress(store, on_progress))


def decoder_for(
    settings: ResolvedSettings,
    encoder: Encoder,
    open_source: Callable[[str], ImageReader],
    times: StageTimes,
    on_progress: Listener,
    processes: DecodingProcesses,
) -> Decoder:
    """The decoder that gives `encoder` its pixels, in half of the settings' memory in flight."""
    device = encoder.device

    def note(sentence: str) -> None:
        on_progress(Progress(NOTE, 0, None, sentence))

    return decoder_of(
        settings,
        encoder.model.preprocess,
        settings.in_flight_bytes // 2,
        open_source,
        times,
        device,
        encoder.tower.dtype,
        partial(pinned, device, on_failure=note) if device.type == "cuda" else None,
        processes,
    )
