"""The contents of a plan: shards, samples, units of work, and images that could not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64

from headspan.shards.images import Wanted


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar, folder, list or Parquet file of the input, as it was when the run was planned."""

    url: str
    first_row: int
    images: int
    # Size in bytes and modification time in nanoseconds; None if the source does not state them. Of a folder or a list:
    # the size of all its files together, and the time of the one that was modified last.
    size_bytes: int | None
    modified_ns: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image of the input and its row in every array of the store.

    In a tar, `offset` and `size_bytes` are the place of the encoded image, and `member` is its path. In a folder or a
    list, `member` is the file's path and `size_bytes` its size; `offset` is 0, or `MISSING` if there was no such file.
    In a Parquet file, `offset` is the image's row in the file, and `size_bytes` is None. `caption`, `metadata` (JSON
    text, as the source has it) and `label` (the class as a number) are None if the shard has none.
    """

    row: int
    key: str
    url: str
    member: str
    offset: int
    size_bytes: int | None
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
    # Place of the encoded images in their shards, as in a Sample. Sizes that are not known are estimates.
    offsets: Int64[np.ndarray, " sample"]
    sizes: Int64[np.ndarray, " sample"]
    # The key of the sample at a place of the span. Only bad images need one.
    key_of: Callable[[int], str]
    # The members of the samples from one place of the span to another. Only some sources need them.
    members_of: Callable[[int, int], Sequence[str]]

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> SampleSpan:
        """The span of `samples`, in their order."""
        return cls(
            rows=np.array([sample.row for sample in samples], np.int64),
            runs=tuple((url, len(list(run))) for url, run in groupby(sample.url for sample in samples)),
            offsets=np.array([sample.offset for sample in samples], np.int64),
            sizes=np.array([sample.size_bytes or 0 for sample in samples], np.int64),
            key_of=lambda place: samples[place].key,
            members_of=lambda start, stop: [sample.member for sample in samples[start:stop]],
        )

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, start: int, stop: int) -> Iterator[tuple[str, int, int]]:
        """Each shard of the samples `start` to `stop`: its url, and where its samples begin and end in the span."""
        begin = 0
        for url, count in self.runs:
            first, end = max(start, begin), min(stop, begin + count)
            if first < end:
                yield url, first, end
            begin += count

    def chosen(self, places: Int64[np.ndarray, " place"]) -> SampleSpan:
        """The span of the samples at `places`, ascending."""
        ends = np.cumsum([count for _, count in self.runs])
        of_run = np.searchsorted(ends, places, side="right")
        counts = np.bincount(of_run, minlength=len(self.runs)).tolist()
        where = places.tolist()
        return SampleSpan(
            rows=self.rows[places],
            runs=tuple((url, count) for (url, _), count in zip(self.runs, counts, strict=True) if count),
            offsets=self.offsets[places],
            sizes=self.sizes[places],
            key_of=lambda place: self.key_of(where[place]),
            members_of=lambda start, stop: [self.members_of(at, at + 1)[0] for at in where[start:stop]],
        )

    def wanted(self, start: int, stop: int, with_members: bool) -> Wanted:
        """The images from `start` to `stop`, which one shard holds."""
        return Wanted(
            tuple(self.offsets[start:stop].tolist()),
            tuple(self.sizes[start:stop].tolist()),
            tuple(self.members_of(start, stop)) if with_members else (),
        )

    def bad_image(self, place: int, reason: str) -> BadImage:
        """The image at `place` of the span as a bad image."""
        end = 0
        for url, count in self.runs:
            end += count
            if place < end:
                return BadImage(int(self.rows[place]), self.key_of(place), url, reason)
        raise IndexError(place)


def wanted(samples: Sequence[Sample], with_members: bool) -> Wanted:
    """The images of `samples`, which one shard holds."""
    return SampleSpan.of(samples).wanted(0, len(samples), with_members)


@dataclass(frozen=True, slots=True)
class Unit:
    """A fixed range of rows that is computed and committed as a whole."""

    index: int
    first_row: int
    rows: int
