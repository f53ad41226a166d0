"""Batches of decoded images: what a decoder returns for a span, and batches of equal size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8

from headspan.shards.samples import BadImage

# Resized and cropped as the model expects them. On the host: uint8, not yet normalised. On a GPU: a tensor
# `[image, 3, height, width]` of floating-point numbers, normalised.
Pixels: TypeAlias = UInt8[np.ndarray, "image height width 3"] | Any


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Batch:
    """Decoded images with their rows. The pixels are in several parts where they come from several spans."""

    rows: Int64[np.ndarray, " image"]
    parts: tuple[Pixels, ...]
    # Called once, when the pixels are not needed any more. The decoder may then use their memory again.
    release: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class DecodedSpan:
    """The images of one span of samples: those that could be decoded, and the bad ones with their reasons."""

    good: Batch
    bad: tuple[BadImage, ...]
    # The row of the span's last sample, good or bad.
    last_row: int
    # Length and crc32c of the encoded images, good and bad, one after another.
    encoded_bytes: int
    crc32c: int

    @property
    def pixel_bytes(self) -> int:
        """Memory of the pixels."""
        return sum(part.nbytes for part in self.good.parts)


def rebatch(spans: Iterable[DecodedSpan], size: int) -> Iterator[Batch]:
    """The good images of `spans`, in order, in batches of `size`; the last batch may be smaller.

    No pixel is copied. A span is released once all batches that hold some of its images are.
    """
    taken: list[Batch] = []
    missing = size
    for span in spans:
        rest = _Shared(span.good)
        while images := len(rest.rows):
            taken.append(rest.take(min(images, missing)))
            missing -= len(taken[-1].rows)
            if missing == 0:
                batch, taken, missing = _joined(taken), [], size
                yield batch
        rest.done()
    if taken:
        yield _joined(taken)


class _Shared:
    """The images of a span, which are taken from the front and released once all that was taken is."""

    def __init__(self, batch: Batch) -> None:
        self.rows = batch.rows
        self._parts = list(batch.parts)
        self._release = batch.release
        # Whoever still needs the span: the batches that took some of it, and `rebatch` until it is done with it.
        self._users = 1

    def take(self, images: int) -> Batch:
        rows, self.rows = self.rows[:images], self.rows[images:]
        parts = []
        while images:
            first = self._parts.pop(0)
            parts.append(first[:images])
            if len(first) > images:
                self._parts.insert(0, first[images:])
            images -= len(parts[-1])
        self._users += 1
        return Batch(rows, tuple(parts), self.done)

    def done(self) -> None:
        self._users -= 1
        if self._users == 0:
            self._release()


def _joined(parts: list[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([part.rows for part in parts])
    return Batch(rows, tuple(each for part in parts for each in part.parts), partial(_release_all, tuple(parts)))


def _release_all(parts: tuple[Batch, ...]) -> None:
    for part in parts:
        part.release()
