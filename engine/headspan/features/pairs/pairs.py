"""Pairs of images and captions of one or more stores, in blocks, in the order of rows or shuffled.

Shuffled blocks are read at the speed of the disk: runs of neighbouring images in random order, mixed in a window that
memory bounds. Of an image with several captions, one is drawn for each epoch; without a seed, the first one is taken.
Memory for vectors does not depend on the number of images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from headspan.errors import SettingsError, counted
from headspan.features.pairs.block import Block
from headspan.features.pairs.caption_index import CaptionIndex
from headspan.features.pairs.image_vectors import image_vectors
from headspan.features.pairs.mixing import mixed
from headspan.features.pairs.space import PATCHES, Space
from headspan.loading.order import Order
from headspan.store.reader import Store

# The vectors of one window; up to three windows are in memory.
_WINDOW_BYTES = 64 << 20
# Neighbouring images that are read together, and the fewest such runs that are mixed.
_RUN_IMAGES, _FEWEST_RUNS = 1024, 8


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Images of the stores that are in no pair."""

    # Images that could not be used, or are not finished.
    unusable: int
    # Images that could be used and have no caption, where captions are needed.
    without_caption: int

    def __str__(self) -> str:
        """The counts in words; empty if nothing was left out."""
        parts = [f"{counted(self.unusable, 'image')} that could not be used"] * (self.unusable > 0)
        parts += [f"{counted(self.without_caption, 'image')} without a caption"] * (self.without_caption > 0)
        return " and ".join(parts)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What one store gives: its images, and their captions with their vectors."""

    store: Store
    images: Int64[np.ndarray, " image"]
    index: CaptionIndex | None
    vectors: Float32[np.ndarray, "caption joint"] | None
    vectors_each: int


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Pairs of stores of one space; `open_pairs` makes them. In spaces without texts, `Block.texts` is None."""

    space: Space
    left_out: LeftOut
    _sources: tuple[Source, ...] = field(repr=False)

    def __len__(self) -> int:
        """The number of pairs; of patches, in that space."""
        return sum(len(source.images) * source.vectors_each for source in self._sources)

    def __repr__(self) -> str:
        return f"Pairs({counted(len(self), 'pair')} in {self.space})"

    @property
    def stores(self) -> tuple[Store, ...]:
        """The stores, in the order in which blocks number them."""
        return tuple(source.store for source in self._sources)

    @property
    def with_texts(self) -> bool:
        """Whether blocks have the vectors of captions."""
        return self._sources[0].vectors is not None

    @property
    def captions_sha256(self) -> list[str | None]:
        """A checksum of the captions of each store; None without captions."""
        return [None if source.index is None else source.index.sha256 for source in self._sources]

    def caption_texts(self, store: int, captions: Sequence[int] | Int64[np.ndarray, " caption"]) -> list[str]:
        """The texts of captions of one store, both by their numbers in blocks."""
        source = self._sources[store]
        assert source.index is not None, "pairs in a space with texts"
        return source.index.texts(source.store, captions)

    def caption_vectors(self, store: int) -> Float32[np.ndarray, "caption joint"]:
        """The unit vectors of the distinct captions of one store, as a read-only memory map."""
        vectors = self._sources[store].vectors
        assert vectors is not None, "pairs in a space with texts"
        return vectors

    def blocks(
        self, size: int, seed: int | None = None, *, epoch: int = 0, skip: int = 0, drop_last: bool = False
    ) -> Iterator[Block]:
        """Yield all pairs once, `size` at a time; the last block may be smaller, or is left out with `drop_last`.

        With a seed, seed and epoch decide the order and the captions. The first `skip` pairs are left out: a multiple
        of `size` gives the blocks that an interrupted epoch still lacks. A thread reads the next window ahead.
        """
        if size < 1:
            raise SettingsError(f"blocks of {size} pairs: give at least 1")
        parts, waiting = deque[tuple[Block, np.ndarray]](), 0
        for window, order in self._read_ahead(seed, epoch, skip):
            parts.append((window, order))
            waiting += len(order)
            while waiting >= size:
                yield _taken(parts, size)
                waiting -= size
        if waiting and not drop_last:
            yield _taken(parts, waiting)

    @property
    def _each(self) -> int:
        """How many pairs an image gives; the model decides, so all stores agree."""
        return self._sources[0].vectors_each

    def _read_ahead(
        self, seed: int | None, epoch: int, skip: int
    ) -> Iterator[tuple[Block, Int64[np.ndarray, " pair"]]]:
        """The windows of an epoch, each with the order of its pairs. One is read while the one before is used."""
        with ThreadPoolExecutor(1, "headspan-pairs") as pool:
            ahead: Future[tuple[Block, np.ndarray]] | None = None
            try:
                for number, positions, skipped in self._windows(seed, epoch, skip):
                    following = pool.submit(self._read, number, positions, seed, epoch, skipped)
                    if ahead is not None:
                        yield ahead.result()
                    ahead = following
                if ahead is not None:
                    yield ahead.result()
            finally:
                if ahead is not None:
                    ahead.cancel()

    def _windows(
        self, seed: int | None, epoch: int, skip: int
    ) -> Iterator[tuple[int, Int64[np.ndarray, " image"], int]]:
        """The number of each window, the positions of its images in order, and how many of its pairs to skip."""
        images = sum(len(source.images) for source in self._sources)
        image_bytes = 4 * self.space.width * (self._each + self.with_texts)
        most = max(1, _WINDOW_BYTES // image_bytes)
        run = max(1, min(_RUN_IMAGES, most // _FEWEST_RUNS))
        order = Order(images, seed is not None, seed or 0, run, max(1, most // run))
        for number, positions in enumerate(order.buffers(epoch, range(images))):
            pairs = len(positions) * self._each
            if skip < pairs:
                yield number, positions, skip
            skip = max(0, skip - pairs)

    def _read(
        self, number: int, positions: Int64[np.ndarray, " image"], seed: int | None, epoch: int, skip: int
    ) -> tuple[Block, Int64[np.ndarray, " pair"]]:
        """The pairs of the images at `positions`, in the order of the stores, and the order to yield them in."""
        found, begin = [], 0
        for place, source in enumerate(self._sources):
            stop = begin + len(source.images)
            here = np.sort(positions[(positions >= begin) & (positions < stop)])
            if len(here):
                found.append(self._pairs_of(place, here - begin, _drawn(here, seed, epoch)))
            begin = stop
        if seed is not None and self._each > 1:
            order = np.random.default_rng([seed, epoch, number]).permutation(len(positions) * self._each)
        else:
            ranks = np.argsort(np.argsort(positions))
            order = (ranks[:, None] * self._each + np.arange(self._each)).reshape(-1)
        return _joined(found), order[skip:]

    def _pairs_of(
        self, place: int, own: Int64[np.ndarray, " image"], drawn: Int64[np.ndarray, " image"] | None
    ) -> Block:
        """The pairs of some images of one store, given by their places among its images."""
        source, each = self._sources[place], self._each
        images = source.images[own]
        rows = source.store.rows[images]
        texts, caption = None, np.full(len(rows) * each, -1)
        if source.index is not None and source.vectors is not None:
            which = 0 if drawn is None else drawn % source.index.counts(rows)
            caption = source.index.numbers[source.index.first[rows] + which]
            texts = np.asarray(source.vectors[caption])
        first = source.store.prefix_tokens
        return Block(
            image_vectors(source.store, self.space, rows),
            texts,
            np.full(len(rows) * each, place),
            images.repeat(each),
            caption,
            np.tile(np.arange(first, first + each), len(rows)) if self.space.kind == PATCHES else None,
        )


def _drawn(positions: Int64[np.ndarray, " image"], seed: int | None, epoch: int) -> Int64[np.ndarray, " image"] | None:
    """A number for each image that decides its caption; it depends on seed, epoch and the image alone."""
    if seed is None:
        return None
    (start,) = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64).tolist()
    return (mixed(positions, start) >> np.uint64(1)).astype(np.int64)


def _taken(parts: deque[tuple[Block, Int64[np.ndarray, " pair"]]], size: int) -> Block:
    """Remove the next `size` pairs from `parts`."""
    taken = []
    while size:
        window, order = parts.popleft()
        if len(order) > size:
            parts.appendleft((window, order[size:]))
        order = order[:size]
        size -= len(order)
        taken.append(_made({name: None if each is None else each[order] for name, each in _arrays(window)}))
    return _joined(taken)


def _joined(blocks: Sequence[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    columns = zip(*map(_arrays, blocks), strict=True)
    return _made({same[0][0]: None if same[0][1] is None else np.concatenate([e for _, e in same]) for same in columns})


def _arrays(block: Block) -> list[tuple[str, np.ndarray | None]]:
    return [(each.name, getattr(block, each.name)) for each in fields(Block)]


def _made(arrays: dict[str, Any]) -> Block:
    return Block(**arrays)
