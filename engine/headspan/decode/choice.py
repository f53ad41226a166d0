"""Choose the decoder of a run by the device that the tower is on."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from headspan.config import PrecomputeSettings, Preprocess, ResolvedSettings
from headspan.decode.decoder import Decoder
from headspan.decode.gpu.nvjpeg import DecodeJpegs, torchvision_on
from headspan.decode.processes.decoder import ProcessDecoder, default_workers
from headspan.decode.processes.kept import DecodingProcesses, Pin
from headspan.decode.routes import route
from headspan.decode.threads import ThreadDecoder
from headspan.shards.images import ImageReader
from headspan.timing import StageTimes

CPU = torch.device("cpu")


def decoder_of(
    settings: ResolvedSettings,
    preprocess: Preprocess,
    in_flight_bytes: int,
    open_source: Callable[[str], ImageReader],
    times: StageTimes,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    pin: Pin | None = None,
    processes: DecodingProcesses | None = None,
) -> Decoder:
    """The decoder for `settings` and a tower of `dtype` on `device`, which opens shards with `open_source`.

    On a CPU, threads decode within `in_flight_bytes`: in processes each worker would import torch, and nothing else
    needs the interpreter. On a GPU, processes decode, since threads would take the interpreter from the thread that
    launches kernels. They keep within all of the settings' memory in flight, because images that wait for the model
    stay in the decoder's memory; `pin` makes that memory fast for transfers. With `--decode gpu` the GPU itself
    decodes, which takes little of this process, so threads read and launch. `processes` are those of
    `decoding_processes`.

    Raises SettingsError if the images cannot be decoded in that way here.
    """
    pixel_route = route(settings.decode)
    if settings.decode == "gpu":
        # Imported here, since it needs simplejpeg.
        from headspan.decode.gpu.decoder import GpuDecoder

        return GpuDecoder(
            jpegs_on(device),
            preprocess,
            device,
            dtype,
            settings.in_flight_bytes,
            settings.workers,
            open_source,
            times,
        )
    if uses_processes(device.type):
        return ProcessDecoder(
            settings.decode,
            preprocess,
            settings.in_flight_bytes,
            settings.batch_size,
            settings.workers,
            open_source,
            times,
            pin,
            processes,
        )
    return ThreadDecoder(pixel_route, preprocess, in_flight_bytes, settings.workers, open_source, times)


def decoding_processes(settings: PrecomputeSettings) -> DecodingProcesses:
    """The processes that decode for a run with `settings`, if processes do; a context manager. None has started yet."""
    return DecodingProcesses(settings.workers or default_workers())


def start_early(processes: DecodingProcesses, settings: PrecomputeSettings, device: str) -> None:
    """Start the processes before the model is loaded, if processes decode for a tower on a device of that type."""
    if uses_processes(device) and settings.decode != "gpu":
        processes.start_early(settings.decode)


def check_decoding(name: str, device: torch.device) -> None:
    """Raise SettingsError if images cannot be decoded in the way called `name` for a tower on `device`."""
    route(name)
    if name == "gpu":
        jpegs_on(device)


@cache
def jpegs_on(device: torch.device) -> DecodeJpegs:
    """What decodes JPEGs on `device`, tried once. Raises SettingsError if nothing does."""
    return torchvision_on(device)


def uses_processes(device: str) -> bool:
    """Whether images are decoded in processes for a tower on a device of that type."""
    return device == "cuda"
