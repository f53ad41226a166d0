"""Encoded images with their extensions, from bytes, paths, PIL images and arrays.

What is encoded already is copied and never decoded. Pixels are encoded without loss unless another format is named.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from headspan.errors import SettingsError, SourceError
from headspan.shards.members import IMAGE_EXTENSIONS

# What files of each format begin with, and at which byte.
_MAGIC = (
    ("jpg", 0, b"\xff\xd8\xff"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("gif", 0, b"GIF8"),
    ("webp", 8, b"WEBP"),
    ("avif", 4, b"ftypavif"),
    ("tif", 0, b"II*\0"),
    ("tif", 0, b"MM\0*"),
    ("bmp", 0, b"BM"),
)
# How Pillow writes each format: PNG and TIFF without loss.
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("png", "PNG", {}),
    "jpeg": ("jpg", "JPEG", {"quality": 95, "subsampling": 0}),
    "webp": ("webp", "WEBP", {"quality": 95}),
}
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")


def encoded(image: object, key: str, root: Path, encode: str) -> tuple[str, bytes]:
    """Return the extension and the bytes of an image.

    `image` is bytes, a path below `root`, a PIL image, a uint8 array `[row, column]` or `[row, column, 1 to 4]`, or the
    dictionary of bytes and path that `datasets` has for an image. Raises SettingsError for anything else, naming `key`,
    and SourceError if a file cannot be read.
    """
    if isinstance(image, dict) and ("bytes" in image or "path" in image):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _extension(bytes(image)), bytes(image)
    if isinstance(image, (str, Path)):
        path = root / image
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SourceError(
                f"{path}: the image of {key} cannot be read ({error.strerror}); correct the path, or give root= for "
                "relative ones"
            ) from error
        extension = path.suffix[1:].lower()
        return extension if extension in IMAGE_EXTENSIONS else _extension(data), data
    # Imported here, since bytes and paths need no Pillow.
    from PIL import Image

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (2,), (3,), (4,)):
            raise SettingsError(
                f"the image of {key} is an array {list(image.shape)} of {image.dtype}; give uint8, [row, column] or "
                "[row, column, 1 to 4]"
            )
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise SettingsError(
            f"the image of {key} is of type {type(image).__name__}; give bytes, a path, a PIL image or a uint8 array"
        )
    extension, form, options = FORMATS[encode]
    if encode == "png" and image.mode not in _PNG_MODES:
        # PNG has no such colours; TIFF keeps them.
        extension, form = "tif", "TIFF"
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **options)
    except OSError as error:
        raise SettingsError(
            f"the image of {key} has the mode {image.mode}, which {form} cannot hold ({error}); convert it to RGB"
        ) from error
    return extension, buffer.getvalue()


def _extension(data: bytes) -> str:
    """The extension for encoded bytes. Those of no known format count as JPEG, and are reported when decoded."""
    return next((name for name, start, magic in _MAGIC if data.startswith(magic, start)), "jpg")
