"""Batches of decoded images: what a decoder returns for a span, and batches of equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from headspan.shards.samples import BadImage


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images with their rows: resized and cropped as the model expects them, not yet normalised."""

    rows: Int64[np.ndarray, " image"]
    pixels: UInt8[np.ndarray, "image height width 3"]


@dataclass(frozen=True, slots=True)
class DecodedSpan:
    """The images of one span of samples: those that could be decoded, and the bad ones with their reasons."""

    good: Batch
    bad: tuple[BadImage, ...]
    # The row of the span's last sample, good or bad.
    last_row: int

    @property
    def pixel_bytes(self) -> int:
        """Memory of the pixels."""
        return self.good.pixels.nbytes


def rebatch(spans: Iterable[DecodedSpan], size: int) -> Iterator[Batch]:
    """The good images of `spans`, in order, in batches of `size`; the last batch may be smaller.

    Pixels are copied only where a batch takes images from several spans.
    """
    parts: list[Batch] = []
    missing = size
    for span in spans:
        rows, pixels = span.good.rows, span.good.pixels
        while len(rows):
            part = Batch(rows[:missing], pixels[:missing])
            rows, pixels = rows[missing:], pixels[missing:]
            parts.append(part)
            missing -= len(part.rows)
            if missing == 0:
                batch, parts, missing = _joined(parts), [], size
                yield batch
    if parts:
        yield _joined(parts)


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return Batch(np.concatenate([part.rows for part in parts]), np.concatenate([part.pixels for part in parts]))
