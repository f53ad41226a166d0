"""Decode one image to uint8 pixels with PIL, bit for bit as open_clip's evaluation transform does.

As in open_clip, EXIF orientation and colour profiles are ignored, and the first frame of an animation is used.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from functools import cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from headspan.config import Preprocess
from headspan.errors import HeadspanError, one_line

# PIL refuses larger images by default: twice Image.MAX_IMAGE_PIXELS.
PIXELS_LIMIT = 178_956_970
# The formats of images on the web. Some other formats of PIL start programs, such as EPS.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# PIL stores RGB in four bytes per pixel; no mode takes more.
_RASTER_BYTES = 4
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
# What PIL's decoders raise on bytes that are not an image, or not a complete one.
PIL_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    EOFError,
    ArithmeticError,
    MemoryError,
    RuntimeError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)


class Undecodable(HeadspanError):
    """An image that cannot be used; the message is the reason, without the image's name."""


def preprocess_image(encoded: bytes, preprocess: Preprocess) -> UInt8[np.ndarray, "height width 3"]:
    """The image as open_clip 3.3's `image_transform(is_train=False)` has it before ToTensor.

    Raises Undecodable if it cannot be decoded, or if it or its resized form has more than PIXELS_LIMIT pixels.
    The header tells the size before memory is allocated.
    """
    pixels = np.empty((*preprocess.size, 3), np.uint8)
    fill_exact(encoded, open_image(encoded, preprocess), preprocess, pixels)
    return pixels


def open_image(encoded: bytes, preprocess: Preprocess) -> Image.Image:
    """The image with only its header read. Raises Undecodable if the header is broken or its size is not accepted."""
    if not encoded:
        raise Undecodable("empty (0 bytes)")
    _silence()
    try:
        image = Image.open(io.BytesIO(encoded), formats=_formats())
    except Image.UnidentifiedImageError as error:
        raise Undecodable("not an image, or its header is broken") from error
    except Image.DecompressionBombError as error:
        raise Undecodable(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except PIL_ERRORS as error:
        raise Undecodable(f"cannot be opened: {one_line(error)}") from error
    refuse_size(image, preprocess)
    return image


def refuse_size(image: Image.Image, preprocess: Preprocess) -> None:
    """Raise Undecodable if the image or its resized form has no pixels, or more than PIXELS_LIMIT."""
    if 0 in image.size:
        raise Undecodable(f"no pixels: {image.width}x{image.height}")
    if image.width * image.height > PIXELS_LIMIT:
        raise Undecodable(f"more than {PIXELS_LIMIT:,} pixels")
    height, width = resized(image.height, image.width, preprocess)
    # A strip of 2 by 40,000 pixels fits any limit, and is 224 by 4,480,000 with its short side resized.
    if not 0 < width * height <= PIXELS_LIMIT:
        raise Undecodable(f"too long and narrow: {image.width}x{image.height} resizes to {width}x{height}")


def fill_exact(
    encoded: bytes, image: Image.Image, preprocess: Preprocess, pixels: UInt8[np.ndarray, "height width 3"]
) -> None:
    """Decode, resize, crop or pad, and only then convert to RGB; `image` is `encoded` with its header read.

    This is open_clip's order, and it costs quality: PIL resizes palette and 1-bit images by nearest neighbour, and
    16-bit greys are clipped to 255. It is kept, since other pixels would give other embeddings than open_clip's.
    Raises Undecodable if the image cannot be decoded.
    """
    try:
        size = resized(image.height, image.width, preprocess)
        _silence()
        image.load()
        if size != (image.height, image.width):
            image = image.resize(size[::-1], _RESAMPLING[interpolation(preprocess)])
        if preprocess.resize_mode != "squash":
            image = crop_or_pad(image, preprocess.size, fill(preprocess))
        found = np.asarray(image.convert("RGB"))
    except PIL_ERRORS as error:
        raise Undecodable(f"cannot be decoded: {one_line(error)}") from error
    pixels[...] = found


def resized(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width after resizing, before cropping, as in torchvision's Resize and open_clip's ResizeKeepRatio."""
    target_height, target_width = preprocess.size
    if preprocess.resize_mode == "squash":
        return preprocess.size
    if preprocess.resize_mode == "shortest" and target_height == target_width:
        # Resize: the short side is exact, the long one rounded down.
        long = int(target_height * max(height, width) / min(height, width))
        return (long, target_height) if width <= height else (target_height, long)
    choose = max if preprocess.resize_mode == "longest" else min
    ratio = choose(height / target_height, width / target_width)
    return round(height / ratio), round(width / ratio)


def interpolation(preprocess: Preprocess) -> str:
    """The filter for resizing: bicubic or bilinear."""
    # For a target that is not square, open_clip does not pass the interpolation on, so the default is used.
    if preprocess.resize_mode == "shortest" and preprocess.size[0] != preprocess.size[1]:
        return "bicubic"
    return preprocess.interpolation


def fill(preprocess: Preprocess) -> int:
    """The grey level of padding; open_clip uses the fill colour for "longest" only."""
    return preprocess.fill_color if preprocess.resize_mode == "longest" else 0


def border(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels to pad left, above, right and below up to `size`; an odd pixel goes to the right and below."""
    missing_height, missing_width = max(size[0] - height, 0), max(size[1] - width, 0)
    return missing_width // 2, missing_height // 2, (missing_width + 1) // 2, (missing_height + 1) // 2


def corner(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Top and left of the crop of `size`."""
    return round((height - size[0]) / 2), round((width - size[1]) / 2)


def crop_or_pad(image: Image.Image, size: tuple[int, int], level: int) -> Image.Image:
    """torchvision's CenterCrop and open_clip's CenterCropOrPad, which compute the same."""
    height, width = size
    added = border(image.height, image.width, size)
    if any(added):
        bands = len(image.getbands())
        palette = image.getpalette() if image.mode == "P" else None
        image = ImageOps.expand(image, border=added, fill=(level,) * bands if bands > 1 else level)
        if palette is not None:
            image.putpalette(palette)
        if image.size == (width, height):
            return image
    top, left = corner(image.height, image.width, size)
    return image.crop((left, top, left + width, top + height))


def raster_bytes(image: Image.Image, preprocess: Preprocess) -> int:
    """Memory of the image at full size and resized; PIL's working copies are not included."""
    height, width = resized(image.height, image.width, preprocess)
    return _RASTER_BYTES * (image.width * image.height + width * height)


@cache
def _formats() -> tuple[str, ...]:
    """The formats of FORMATS that this PIL was built with; AVIF needs 11.2."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _silence() -> None:
    """Silence PIL's warnings (EXIF, large images, transparency) in this process from now on.

    If one matters, the image is bad and has a reason. `warnings.catch_warnings` does not work with threads.
    """
    if warnings.filters[:1] != [_PIL_IS_SILENT]:
        warnings.filterwarnings("ignore", module=r"PIL\.")


_PIL_IS_SILENT = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
