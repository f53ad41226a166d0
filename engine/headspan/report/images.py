"""Make the pictures of a report smaller if there are many, so that the page stays below 25 MB."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from headspan.originals.pictures import LARGEST, encode

# The longer side in pixels and the quality of the pictures; the first pair with which a page is small enough is used.
SETTINGS = (LARGEST, (224, 65), (224, 50), (192, 50), (160, 50), (128, 45), (96, 40), (64, 30))
# Of all pictures of a page, in base64: with texts and maps of 384 heads, the page stays below 25 MB.
BUDGET_BYTES = 16_000_000
# How many pictures predict the size of all.
_TRIED = 32


def fitted(pictures: Sequence[bytes], budget_bytes: int = BUDGET_BYTES) -> list[bytes]:
    """The pictures, made smaller if together they exceed `budget_bytes` in base64.

    The first of `SETTINGS` with which they fit is used, or else the last.
    """
    found = list(pictures)
    with ThreadPoolExecutor() as threads:
        for side, quality in SETTINGS[1:]:
            if _base64_bytes(found) <= budget_bytes:
                break

            def smaller(picture: bytes, side: int = side, quality: int = quality) -> bytes:
                with Image.open(io.BytesIO(picture)) as image:
                    return encode(np.asarray(image.convert("RGB")), side, quality)

            tried = [smaller(picture) for picture in pictures[:: max(1, len(pictures) // _TRIED)]]
            if _base64_bytes(tried) * len(pictures) <= budget_bytes * len(tried) or (side, quality) == SETTINGS[-1]:
                found = list(threads.map(smaller, pictures))
    return found


def _base64_bytes(pictures: Sequence[bytes]) -> int:
    return sum(4 * -(-len(picture) // 3) for picture in pictures)
