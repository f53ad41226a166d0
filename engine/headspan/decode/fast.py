"""Decode one JPEG to uint8 pixels with libjpeg-turbo and torch's resize, in half the time of exact.py.

A photograph's pixels differ from those of exact.py by at most two grey levels, and by less than 0.01 on average. Both
routes decode to the same bits and resize with the same filter, but torch's filter weights have 16 bits. Anything but a
sound JPEG in grey or colour takes the exact route, so that bad images have the same reasons. Decoding at half the size
would be faster, but its pixels differ far more.
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
# Finds the OpenMP library, which importing torch loads.
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
    """The JPEG's pixels as PIL decodes them; None if the image is not a sound JPEG in grey or colour."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    try:
        # The slow cosine transform and smooth upsampling of colour, as in PIL. `strict` refuses damaged files.
        pixels = simplejpeg.decode_jpeg(encoded, "RGB", fastdct=False, fastupsample=False, strict=True)
    except (ValueError, MemoryError):
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None


def rows_first(height: int, width: int, new_height: int, new_width: int) -> bool:
    """Whether Pillow changes the number of rows before that of columns: since version 13, if it shrinks most."""
    return _PILLOW >= 13 and height > new_height and height - new_height > 2 * (width - new_width)


def _resize(
    pixels: UInt8[np.ndarray, "height width 3"], size: tuple[int, int], mode: str
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """PIL's resize, which rounds to whole grey levels after each of its two passes, along rows and along columns."""
    (height, width), (new_height, new_width) = pixels.shape[:2], size
    steps = [size]
    # torch changes the width first.
    if rows_first(height, width, new_height, new_width):
        steps = [(new_height, width), size]
    # The batch axis is added before the permutation: otherwise torch does not recognise that the colours of a pixel are
    # contiguous, and copies them.
    batch = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    # torch sets a thread's number of OpenMP threads at its first use there. The limit applies to this thread only.
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
