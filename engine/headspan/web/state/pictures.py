"""Pictures of stored and dropped-in images, encoded anew: whole, or the part that the model sees.

The new files have no metadata of the originals. Orientation in EXIF is ignored, as the model ignores it, so that maps
lie where the model looked.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from headspan.config import Preprocess
from headspan.decode.exact import PIL_ERRORS, Undecodable, open_image, preprocess_image
from headspan.errors import SourceError, one_line
from headspan.originals.encoded_image import encoded_image
from headspan.originals.pictures import encode
from headspan.originals.seen_part import stored_preprocess
from headspan.store.reader import Store
from headspan.web.state.bounded import Bounded

_KEPT_BYTES = 64 << 20
_QUALITY = 80
# Larger pictures are decoded one at a time: 179 million pixels take 0.7 GB.
_LARGE_PIXELS = 16_000_000


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture with the checksum that tells it from others."""

    encoded: bytes
    tag: str


class Pictures:
    """Encoded pictures, the ones that were used last in memory. Threads may share it."""

    def __init__(self) -> None:
        self._kept: Bounded[bytes] = Bounded(_KEPT_BYTES, len)
        self._large = threading.Lock()

    def tag(self, encoded: bytes, store: Store, side: int | None) -> str:
        """What tells the picture of `side` pixels, or the one that the model sees, from others."""
        settings = f"{side} {store.attributes['preprocess'] if side is None else ''}"
        return hashlib.sha256(encoded + settings.encode()).hexdigest()[:32]

    def picture(self, encoded: bytes, store: Store, side: int | None) -> bytes:
        """A WebP file of the whole picture with at most `side` pixels a side; without `side`, of what the model sees.

        Raises SourceError if the file cannot be decoded.
        """
        key = self.tag(encoded, store, side)
        found = self._kept.get(key)
        if found is None:
            preprocess = stored_preprocess(store.attributes["preprocess"])
            try:
                image = open_image(encoded, preprocess)
                if image.width * image.height > _LARGE_PIXELS:
                    with self._large:
                        found = _encoded(encoded, image, preprocess, side)
                else:
                    found = _encoded(encoded, image, preprocess, side)
            except (Undecodable, *PIL_ERRORS) as error:
                raise SourceError(f"the picture cannot be decoded ({one_line(error)})") from error
            self._kept.put(key, found)
        return found


def original(store: Store, image: int, shards: Sequence[str]) -> bytes:
    """The encoded image of that index as its shard holds it. Raises SourceError if the shard is gone or has changed."""
    return encoded_image(store, image, shards)


def size_of(encoded: bytes, store: Store) -> tuple[int, int]:
    """Width and height of a picture. Raises SourceError if it is none."""
    try:
        return open_image(encoded, stored_preprocess(store.attributes["preprocess"])).size
    except Undecodable as error:
        raise SourceError(f"the file is no picture that headspan can use ({error})") from error


def _encoded(encoded: bytes, image: Image.Image, preprocess: Preprocess, side: int | None) -> bytes:
    if side is None:
        return encode(preprocess_image(encoded, preprocess), max(preprocess.size), _QUALITY)
    # JPEGs are decoded at a fraction of their size.
    image.draft("RGB", (side, side))
    reduced = image.convert("RGB")
    reduced.thumbnail((side, side), Image.Resampling.LANCZOS)
    # Neither orientation nor places, which would be written again.
    reduced.info = {}
    buffer = io.BytesIO()
    reduced.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return buffer.getvalue()
