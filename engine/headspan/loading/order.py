"""The order in which an epoch visits images: blocks at random, images at random within a buffer of several blocks.

An epoch is divided into parts of equal length, one for each rank, and these for each worker. No image is in two parts.
Everything follows from the seed and the epoch, so that any process can compute its part, from any batch on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from headspan.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Order:
    """How `images` images are visited. `block_images` neighbours are read together; `buffer_blocks` are mixed."""

    images: int
    shuffle: bool
    seed: int
    block_images: int
    buffer_blocks: int

    def __post_init__(self) -> None:
        if self.block_images < 1 or self.buffer_blocks < 1:
            raise SettingsError(
                f"{self.block_images} block_images and {self.buffer_blocks} buffer_blocks: both must be at least 1"
            )

    def buffers(self, epoch: int, positions: range, skipped: int = 0) -> Iterator[Int64[np.ndarray, " image"]]:
        """The images at `positions` of an epoch, but for the first `skipped`: one buffer after the other."""
        size = self.block_images
        blocks = -(-self.images // size)
        order = np.random.default_rng([self.seed, epoch]).permutation(blocks) if self.shuffle else np.arange(blocks)
        # Where each block ends in the epoch. Only the block with the last images may be shorter.
        ends = np.cumsum(np.where(order == blocks - 1, self.images - (blocks - 1) * size, size))
        if not positions:
            return
        first, last = np.searchsorted(ends, [positions.start, positions.stop - 1], side="right").tolist()
        for buffer in range(first, last + 1, self.buffer_blocks):
            stop = min(buffer + self.buffer_blocks, last + 1)
            begin = int(ends[buffer - 1]) if buffer else 0
            kept = slice(max(0, positions.start - begin), min(int(ends[stop - 1]), positions.stop) - begin)
            count = kept.stop - kept.start
            if skipped >= count:
                skipped -= count
                continue
            starts = order[buffer:stop, None] * size
            # Images beyond the end are those that the shorter block lacks.
            images = (starts + np.arange(size)).reshape(-1)
            images = images[images < self.images][kept]
            if self.shuffle:
                np.random.default_rng([self.seed, epoch, positions.start, buffer]).shuffle(images)
            yield images[skipped:]
            skipped = 0


def part(positions: range, index: int, parts: int, equal: bool) -> range:
    """Part `index` of `parts` of the positions of an epoch.

    Parts differ by one image if `parts` does not divide their number; with `equal`, the last ones are left out instead.
    """
    each, more = divmod(len(positions), parts)
    if equal:
        more = 0
    first = index * each + min(index, more)
    return positions[first : first + each + (index < more)]


def skipped_batches(done: int, workers: int, batches: list[int]) -> list[int]:
    """How many of each worker's `batches` are among the first `done`, if workers take turns, as in a DataLoader.

    Workers that have no more batches are passed over.
    """
    skipped = [0] * workers
    while done > 0:
        left = [index for index in range(workers) if skipped[index] < batches[index]]
        if not left:
            break
        # Whole rounds in which all of these still have batches, then single ones.
        rounds = min(done // len(left), min(batches[index] - skipped[index] for index in left))
        for place, index in enumerate(left):
            skipped[index] += rounds if rounds else place < done
        done -= rounds * len(left) if rounds else min(done, len(left))
    return skipped
