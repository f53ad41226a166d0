"""An image that a user names by a file, or gives as pixels: its name, its checksum, and its pixels for the model."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.config import Preprocess
from headspan.decode.exact import PIL_ERRORS, Undecodable, fill_exact, open_image, refuse_size
from headspan.decode.routes import route
from headspan.errors import HeadspanError, SettingsError, SourceError, one_line
from headspan.user_paths import expand_user

# Larger files are not images: no format of 179 million pixels takes more.
_MOST_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An encoded image, or the pixels of one."""

    name: str
    # Either the bytes of a file, or an image whose pixels are given.
    encoded: bytes | None
    given: Image.Image | None

    def opened(self, preprocess: Preprocess) -> Image.Image:
        """The image with at least its header read. Raises SourceError if it is none, or its size is not accepted."""
        try:
            if self.given is None:
                assert self.encoded is not None
                return open_image(self.encoded, preprocess)
            refuse_size(self.given, preprocess)
            return self.given
        except Undecodable as error:
            raise self._refused(error) from error

    def decoded(self, preprocess: Preprocess, decode: str) -> UInt8[np.ndarray, "height width 3"]:
        """The model's input as a run with `--decode` of that name has it; given pixels are resized by PIL.

        Raises SourceError if the image cannot be decoded.
        """
        image = self.opened(preprocess)
        pixels = np.empty((*preprocess.size, 3), np.uint8)
        fill = fill_exact if self.encoded is None else route(decode)
        try:
            fill(self.encoded or b"", image, preprocess, pixels)
        except Undecodable as error:
            raise self._refused(error) from error
        return pixels

    def checksum(self) -> str:
        """SHA-256 of the file, or of the pixels with their size and mode. Raises SourceError if they cannot be read."""
        if self.given is None:
            return hashlib.sha256(self.encoded or b"").hexdigest()
        digest = hashlib.sha256(f"{self.given.mode} {self.given.size}".encode())
        try:
            # A palette's colours are not among its bytes.
            digest.update((self.given.convert("RGBA") if self.given.mode == "P" else self.given).tobytes())
        except PIL_ERRORS as error:
            raise self._refused(Undecodable(f"cannot be decoded: {one_line(error)}")) from error
        return digest.hexdigest()

    def _refused(self, error: HeadspanError) -> SourceError:
        return SourceError(
            f"{self.name}: is no image that headspan can use ({error}); give a JPEG, PNG, WebP or GIF file, or "
            "another that Pillow reads"
        )


def image_source(image: str | Path | Image.Image | np.ndarray) -> ImageSource:
    """An image by its file, a PIL image, or uint8 pixels `[height, width, 3]` or `[height, width]`.

    Raises SourceError if the file cannot be read, and SettingsError if the array has another shape or type.
    """
    if isinstance(image, Image.Image):
        return ImageSource(Path(getattr(image, "filename", "") or "image").name, None, image)
    if isinstance(image, np.ndarray):
        grey_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
        if image.dtype != np.uint8 or not grey_or_rgb or not image.size:
            raise SettingsError(
                f"pixels of shape {image.shape} and type {image.dtype}: give uint8 [height, width, 3], or the path of "
                "a file"
            )
        return ImageSource("pixels", None, Image.fromarray(image))
    path = expand_user(image)
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise SourceError(f"{path}: is no image: it has {size / 1e9:,.1f} GB; give the path of an image file")
        return ImageSource(path.name, path.read_bytes(), None)
    # ValueError: a path with a NUL character.
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise SourceError(
            f"{path}: cannot be read ({why}); give the path of an image file, or the index of an image of the store"
        ) from error
