"""The contents of a plan: shards, samples, units of work, and images that could not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar of the input, as it was when the run was planned."""

    url: str
    first_row: int
    images: int
    # Size in bytes and modification time in nanoseconds; None if the source does not state them.
    size_bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the input and its row in every array of the store.

    `offset` and `size_bytes` are the place of the encoded image in the tar. `caption`, `metadata` (JSON text, as it
    is in the tar) and `label` (the `cls` member) are None if the shard has none.
    """

    row: int
    key: str
    url: str
    member: str
    offset: int
    size_bytes: int
    caption: str | None = None
    label: int | None = None
    metadata: str | None = None


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that could not be used, and the reason; or a note on a member, with row -1 if it concerns no image."""

    row: int
    key: str
    url: str
    reason: str


@dataclass(frozen=True, slots=True)
class SampleSpan:
    """Samples that are read and decoded together, as columns: neither Python objects nor captions per image."""

    rows: Int64[np.ndarray, " sample"]
    # The urls of the samples' shards, each with the number of neighbouring samples from it.
    runs: tuple[tuple[str, int], ...]
    # Place of the encoded images in their tars, in bytes.
    offsets: Int64[np.ndarray, " sample"]
    sizes: Int64[np.ndarray, " sample"]
    # The key of the sample at a place of the span. Only bad images need one.
    key_of: Callable[[int], str]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleSpan:
        """The span of `samples`, in their order."""
        return cls(
            rows=np.array([sample.row for sample in samples], np.int64),
            runs=tuple((url, len(list(run))) for url, run in groupby(sample.url for sample in samples)),
            offsets=np.array([sample.offset for sample in samples], np.int64),
            sizes=np.array([sample.size_bytes for sample in samples], np.int64),
            key_of=lambda place: samples[place].key,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def members(self) -> Iterator[tuple[str, int, int]]:
        """Url, offset and size of every encoded image, in order."""
        places = zip(self.offsets.tolist(), self.sizes.tolist(), strict=True)
        for url, count in self.runs:
            for _ in range(count):
                yield url, *next(places)

    def bad_image(self, place: int, reason: str) -> BadImage:
        """The image at `place` of the span as a bad image."""
        end = 0
        for url, count in self.runs:
            end += count
            if place < end:
                return BadImage(int(self.rows[place]), self.key_of(place), url, reason)
        raise IndexError(place)


@dataclass(frozen=True, slots=True)
class Unit:
    """A fixed range of rows that is computed and committed as a whole."""

    index: int
    first_row: int
    rows: int
