"""One encoded image to uint8 pixels, in half of pixels.py's time: libjpeg-turbo into an array, torch's resize of bytes.

A photograph's pixels are those of pixels.py within two grey levels, and within 0.01 of one on average. Both decode
alike, to the bit, and resize by the same filter, but torch's weights have 16 bits. What is no sound JPEG in grey or
colour goes pixels.py's way, so that bad images have the same reasons. Decoding at half the size would be faster
still, and wrong by far more than that.
"""

from __future__ import annotations

import numpy as np
import PIL
import simplejpeg
import torch
from jaxtyping import UInt8
from PIL import Image
from threadpoolctl import ThreadpoolController
from torch.nn.functional import interpolate

from headspan.config import Preprocess
from headspan.decode.exact import border, corner, fill, fill_exact, interpolation, resized

_PILLOW = int(PIL.__version__.partition(".")[0])
# Finds OpenMP, which torch has loaded by now.
_LIBRARIES = ThreadpoolController()


def fill_fast(
    encoded: bytes, image: Image.Image, preprocess: Preprocess, pixels: UInt8[np.ndarray, "height width 3"]
) -> None:
    """Decode, resize, crop or pad; `image` is `encoded` with its header read.

    It uses the calling thread alone, whatever torch's number of threads. Raises Undecodable if the image cannot be
    decoded.
    """
    raster = _decoded(encoded, image)
    if raster is None:
        fill_exact(encoded, image, preprocess, pixels)
        return
    raster = _resize(raster, resized(image.height, image.width, preprocess), interpolation(preprocess))
    pixels[...] = _crop_or_pad(raster, preprocess.size, fill(preprocess))


def _decoded(encoded: bytes, image: Image.Image) -> UInt8[np.ndarray, "height width 3"] | None:
    """The JPEG's pixels as PIL decodes them; None for what is none, or not a sound one in grey or colour."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    try:
        # Slow cosine transform and smooth upsampling of colour, as PIL has them; strict: no damage is painted over.
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, strict=True)
    except (ValueError, MemoryError):
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def _resize(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int], mode: str
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """PIL's resize, which rounds to whole levels after each of its two passes, along rows and along columns."""
    (height, width), (new_height, new_width) = pixels.shape[:2], size
    steps = [size]
    # torch filters along rows first. Pillow has done the other since version 13, where height shrinks far more.
    if _PILLOW >= 13 and height > new_height and height - new_height > 2 * (width - new_width):
        steps = [(new_height, width), size]
    # In this order: with the axis of the batch put on last, torch does not see colours side by side, and moves them.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    # Torch sets a thread's number of OpenMP threads when it is first used there; it is lowered for this thread alone.
    torch.get_num_threads()
    with _LIBRARIES.limit(limits=1, user_api="openmp"):
        for step in steps:
            if step != tuple(batch.shape[2:]):
                batch = interpolate(batch, size=step, mode=mode, antialias=True)
    return batch[0].permute(1, 2, 0).numpy()


def _crop_or_pad(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int], level: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    left, above, right, below = border(pixels.shape[0], pixels.shape[1], size)
    if left or above or right or below:
        pixels = np.pad(pixels, ((above, below), (left, right), (0, 0)), constant_values=level)
    top, left = corner(pixels.shape[0], pixels.shape[1], size)
    return pixels[top : top + size[0], left : left + size[1]]
