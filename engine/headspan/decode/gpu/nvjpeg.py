"""JPEGs to pixels on a GPU, by torchvision.

torchvision decodes them with nvJPEG, because open_clip requires torchvision and so it is installed already;
nvImageCodec decodes with nvJPEG too and covers more formats, but is another package for each version of CUDA. Pixels
differ from those of the exact route by some grey levels before resizing, since nvJPEG interpolates colours differently.
GPUs with JPEG engines (A100, H100 and later) decode baseline files in batches, and other files one at a time.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor

from headspan.errors import SettingsError, one_line

# Decodes JPEGs, each a tensor of its bytes, to uint8 images `[channel, height, width]` on the device, and waits for
# them. Raises RuntimeError if one of them cannot be decoded.
DecodeJpegs: TypeAlias = Callable[[list[Tensor]], list[Tensor]]
# Warnings of libraries that concern their authors or do not hold here: nothing writes to the bytes that are decoded.
_WARNINGS = (
    (r"(?s).*TorchCodec", DeprecationWarning),
    (r"The given buffer is not writable", UserWarning),
)


def torchvision_on(device: torch.device) -> DecodeJpegs:
    """torchvision's decoder of JPEGs on `device`. Raises SettingsError if there is none; it is tried on one image."""
    if device.type != "cuda":
        raise SettingsError(f"--decode gpu needs a CUDA device, but the model runs on {device}; give --decode fast")
    silence()
    try:
        # Imported here, since it takes seconds and only `gpu` needs it.
        from torchvision.io import ImageReadMode, decode_jpeg
    except (ImportError, RuntimeError) as error:
        raise _no_decoder(error) from error

    def decode(jpegs: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = decode_jpeg(jpegs, mode=ImageReadMode.RGB, device=device)
        return found

    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (255, 255, 255)).save(buffer, "JPEG")
    try:
        (found,) = decode([torch.frombuffer(buffer.getvalue(), dtype=torch.uint8)])
        works = found.shape == (3, 16, 16) and bool((found > 250).all())
    except RuntimeError as error:
        raise _no_decoder(error) from error
    if not works:
        raise _no_decoder(ValueError("it decodes white to something else"))
    return decode


def _no_decoder(error: Exception) -> SettingsError:
    return SettingsError(
        f"--decode gpu needs a torchvision that decodes JPEGs on the GPU, but this one does not ({one_line(error)}); "
        "give --decode fast"
    )


def silence() -> None:
    """Silence the libraries' warnings in this process. `warnings.catch_warnings` does not work with threads."""
    for message, category in _WARNINGS:
        warnings.filterwarnings("ignore", message, category)
