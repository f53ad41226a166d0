"""Choose the decoder of a run by the device that the tower is on."""

from __future__ import annotations

from collections.abc import Callable

from headspan.config import PrecomputeSettings, Preprocess
from headspan.decode.decoder import Decoder
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.processes.decoding import Pin
from headspan.decode.routes import route
from headspan.decode.threads import ThreadDecoder
from headspan.shards.reader import ShardReader
from headspan.timing import StageTimes


def decoder_of(
    settings: PrecomputeSettings,
    preprocess: Preprocess,
    in_flight_bytes: int,
    open_source: Callable[[str], ShardReader],
    times: StageTimes,
    device: str = "cpu",
    pin: Pin | None = None,
) -> Decoder:
    """The decoder for `settings` and a tower on a `device` of that type, which opens shards with `open_source`.

    On a CPU, threads decode within `in_flight_bytes`: in processes each worker would import torch, and nothing else
    needs the interpreter. On a GPU, processes decode, since threads would take the interpreter from the thread that
    launches kernels. They keep within all of the settings' memory in flight, because images that wait for the model
    stay in the decoder's memory; `pin` makes that memory fast for transfers.

    Raises SettingsError if the library of the route cannot be loaded.
    """
    pixel_route = route(settings.decode)
    if uses_processes(device):
        return ProcessDecoder(
            settings.decode,
            preprocess,
            settings.in_flight_bytes,
            settings.batch_size,
            settings.workers,
            open_source,
            times,
            pin,
        )
    return ThreadDecoder(pixel_route, preprocess, in_flight_bytes, settings.workers, open_source, times)


def uses_processes(device: str) -> bool:
    """Whether images are decoded in processes for a tower on a device of that type."""
    return device == "cuda"
