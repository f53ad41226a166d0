"""Whole pictures, as their files have them, with the part that the model sees; to lay maps over them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pil

from headspan.decode.exact import PIL_ERRORS
from headspan.errors import SourceError, one_line
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.explore.query.image_source import ImageSource, image_source
from headspan.explore.query.query_image import Image, Images, QueryImage, listed
from headspan.originals.encoded_image import encoded_image
from headspan.originals.seen_part import Box, seen_part, stored_preprocess
from headspan.store.reader import Store

# The longer side of a picture in memory.
_MOST_PIXELS = 1024


@dataclass(frozen=True, slots=True)
class WholePicture:
    """A picture, reduced to at most 1,024 pixels a side, and the part of it that the model sees, in these pixels."""

    pixels: UInt8[np.ndarray, "height width 3"]
    seen: Box

    def seen_pixels(self) -> UInt8[np.ndarray, "height width 3"]:
        """The part that the model sees; padding is black."""
        box = (round(self.seen.left), round(self.seen.top), round(self.seen.right), round(self.seen.bottom))
        return np.asarray(Pil.fromarray(self.pixels).crop(box))


def whole_pictures(
    store: Store,
    images: Images,
    on_progress: Listener = ignore,
    *,
    shards: Sequence[str] = (),
) -> list[WholePicture | None]:
    """The pictures of images as `query_image` takes them; stored ones are read from their shards.

    An image that cannot be read is None, and an event says why. `shards` are as in `query_image`.
    """
    found: list[WholePicture | None] = []
    for image in listed(store, images):
        try:
            found.append(_picture(_source(store, image, shards), store))
        except SourceError as error:
            on_progress(Progress(NOTE, 0, None, f"a map is drawn without its picture: {error}"))
            found.append(None)
    return found


@dataclass(frozen=True, slots=True)
class PictureShape:
    """The size of a picture in pixels, and the part that the model sees as fractions of width and height."""

    width: int
    height: int
    seen: Box


def picture_shape(store: Store, image: int | bytes, *, shards: Sequence[str] = ()) -> PictureShape:
    """The shape of the picture of an image: of a stored one by its index, or of an encoded one. No pixel is decoded.

    Raises SourceError if the picture cannot be read. `shards` are as in `query_image`.
    """
    source = ImageSource("image", image, None) if isinstance(image, bytes) else _source(store, image, shards)
    preprocess = stored_preprocess(store.attributes["preprocess"])
    width, height = source.opened(preprocess).size
    seen = seen_part(height, width, preprocess)
    return PictureShape(
        width, height, Box(seen.left / width, seen.top / height, seen.right / width, seen.bottom / height)
    )


def _source(store: Store, image: Image | QueryImage, shards: Sequence[str]) -> ImageSource:
    if isinstance(image, str | Path | Pil.Image | np.ndarray):
        return image_source(image)
    if isinstance(image, QueryImage):
        if image.image is None:
            raise SourceError(f"{image.name}: its picture was not kept with its numbers; name the file")
        image = image.image
    (name,) = store.samples([image], ["key"])["key"].to_pylist()
    return ImageSource(name, encoded_image(store, image, shards), None)


def _picture(source: ImageSource, store: Store) -> WholePicture:
    preprocess = stored_preprocess(store.attributes["preprocess"])
    image = source.opened(preprocess)
    width, height = image.size
    seen = seen_part(height, width, preprocess)
    try:
        if source.given is None:
            # JPEGs are decoded at a fraction of their size.
            image.draft("RGB", (_MOST_PIXELS, _MOST_PIXELS))
        reduced = image.convert("RGB")
    except PIL_ERRORS as error:
        raise SourceError(f"{source.name}: cannot be decoded ({one_line(error)})") from error
    reduced.thumbnail((_MOST_PIXELS, _MOST_PIXELS), Pil.Resampling.LANCZOS)
    across, down = reduced.width / width, reduced.height / height
    box = Box(seen.left * across, seen.top * down, seen.right * across, seen.bottom * down)
    return WholePicture(np.asarray(reduced), box)
