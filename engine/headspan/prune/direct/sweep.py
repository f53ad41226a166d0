"""Zero-shot classification after the mean ablation of each head alone, exact, in one reading of the stored numbers.

In head coordinates a head moves the scores of all classes by the deviation of its coordinates from their mean, times a
matrix `[coordinate, class]`. These products are computed in float32, block by block in a core's cache. Where two
classes are closer than the bound on float32's rounding, the image is classified again in float64. So whether an image
is right is what float64 gives, with ties as in `argmax`: the first of several best classes is named.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8
from threadpoolctl import threadpool_limits

from headspan.decompose.formula import head_coordinates
from headspan.events import Listener, Progress, ignore
from headspan.prune.direct.block_margins import BlockMargins, HeadScores
from headspan.prune.direct.head_changes import outputs_of_heads
from headspan.prune.direct.judged import Judged, rightly_named
from headspan.store.head_space import Head
from headspan.store.kept_means import head_means
from headspan.store.products import over_spans

# Images of a block at most, and its scores; both are multiples of 8, as are the images of each block.
_BLOCK_ROWS, _BLOCK_SCORES = 1024, 1 << 21
# The most bytes of the heads' matrices `[coordinate, class]` that are in memory together.
_TOGETHER_BYTES = 1 << 28


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """Which images are right before and after the mean ablation of each head, and how much margin each head gives."""

    before: Bool[np.ndarray, " image"]
    # For each head, a bit for each image, as `np.packbits` packs them.
    after: UInt8[np.ndarray, "head byte"]
    # The margin before minus the margin after, mean over images. An image's margin is the score of its class minus the
    # best score of the others.
    margin_loss: Float64[np.ndarray, " head"]

    def right(self, place: int) -> Bool[np.ndarray, " image"]:
        """Which images are right without the head at `place`."""
        return np.unpackbits(self.after[place], count=len(self.before)).astype(bool)

    def correct(self) -> Int64[np.ndarray, " head"]:
        """How many images are right without each head."""
        return np.bitwise_count(self.after).sum(axis=1, dtype=np.int64)


def sweep(judged: Judged, heads: Sequence[Head], removed: Sequence[Head] = (), on_progress: Listener = ignore) -> Swept:
    """Classify the images without each of `heads` alone, of which there is at least one, and without all of `removed`.

    Means are over all good images, from the store's moments. Raises SettingsError if a head is not stored, and
    StoreError if no unit is finished.
    """
    store = judged.store
    size = (store.head_dim + 3) * len(judged.vectors) * 4
    together = max(1, _TOGETHER_BYTES // size)
    parts = []
    for first in range(0, len(heads), together):
        part = _Pass(judged, heads[first : first + together], removed)
        parts.append(part.run(on_progress, first, len(heads)))
    after = np.concatenate([part.after for part in parts])
    return Swept(parts[0].before, after, np.concatenate([part.margin_loss for part in parts]))


class _Pass:
    """One reading of the numbers of some heads."""

    def __init__(self, judged: Judged, heads: Sequence[Head], removed: Sequence[Head]) -> None:
        self._judged, self._heads, self._removed = judged, heads, removed
        store = judged.store
        self._rows, self._norm = store.rows[judged.images], store.norm[judged.images]
        self._means, self._removed_means = head_means(store, heads), head_means(store, removed)
        self._scores: list[HeadScores] = []
        images = len(judged.images)
        self._block_rows = min(_BLOCK_ROWS, max(8, _BLOCK_SCORES // len(judged.vectors) // 8 * 8))
        self._before = np.empty(images, bool)
        self._after = np.empty((len(heads), -(-images // 8)), np.uint8)
        self._losses = np.zeros((len(heads), -(-images // self._block_rows)))

    def run(self, on_progress: Listener, done: int, total: int) -> Swept:
        """Compute all blocks; `done` of `total` heads were computed before."""
        images = len(self._rows)
        unsure: list[tuple[np.ndarray, np.ndarray]] = []

        def classify(first: int, end: int) -> None:
            for begin in range(first, end, self._block_rows):
                unsure.append(self._block(begin, min(begin + self._block_rows, end)))
                if first == 0:
                    share = min(1.0, (begin + self._block_rows) / end)
                    on_progress(Progress("heads", done + int(share * len(self._heads)), total))

        with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
            self._scores = list(threads.map(self._of_head, self._heads, self._means))
            over_spans(images, self._block_rows, classify)
        places, again = (np.concatenate(each) for each in zip(*unsure, strict=True))
        for place in np.unique(places).tolist():
            self._again(place, np.sort(again[places == place]))
        return Swept(self._before, self._after, self._losses.sum(axis=1) / images)

    def _block(self, first: int, end: int) -> tuple[Int64[np.ndarray, " unsure"], Int64[np.ndarray, " unsure"]]:
        """Classify a block of images without each head; return head and image of those that float32 cannot decide."""
        here = slice(first, end)
        embeddings = self._embeddings(np.arange(first, end))
        truths, norm = self._judged.truths[here], self._norm[here]
        exact = embeddings @ self._judged.vectors.T
        self._before[here] = rightly_named(embeddings, exact, truths, self._judged.vectors)
        block = BlockMargins(exact, truths, self._judged.reach)
        found_heads, found_images = [], []
        for place, outputs in enumerate(outputs_of_heads(self._judged.store, self._heads, self._rows[here])):
            head = self._scores[place]
            coordinates = head_coordinates(outputs, norm, normalised=True) - head.mean
            left, errors = block.without(head, coordinates)
            near = np.flatnonzero(np.abs(left) <= errors)
            found_heads.append(np.full(len(near), place))
            found_images.append(first + near)
            self._after[place, first // 8 : -(-end // 8)] = np.packbits(left > 0)
            self._losses[place, first // self._block_rows] = (block.whole - left).sum()
        return np.concatenate(found_heads), np.concatenate(found_images)

    def _again(self, place: int, images: Int64[np.ndarray, " image"]) -> None:
        """Classify images without one head in float64, and correct their bits."""
        for first in range(0, len(images), self._block_rows):
            some = images[first : first + self._block_rows]
            embeddings = self._embeddings(some) - self._moved(self._heads[place], self._means[place], some)
            exact = embeddings @ self._judged.vectors.T
            found = rightly_named(embeddings, exact, self._judged.truths[some], self._judged.vectors)
            bits = np.uint8(128) >> (some % 8).astype(np.uint8)
            np.bitwise_and.at(self._after[place], some // 8, ~bits)
            np.bitwise_or.at(self._after[place], some // 8, np.where(found, bits, np.uint8(0)))

    def _embeddings(self, places: Int64[np.ndarray, " image"]) -> Float64[np.ndarray, "image joint"]:
        """The unit embeddings of some images without the removed heads."""
        store = self._judged.store
        found = store.embedding[self._judged.images[places]].astype(np.float64) / self._norm[places, 2:]
        for head, mean in zip(self._removed, self._removed_means, strict=True):
            found -= self._moved(head, mean, places)
        return found

    def _moved(
        self, head: Head, mean: Float64[np.ndarray, " coordinate"], places: Int64[np.ndarray, " image"]
    ) -> Float64[np.ndarray, "image joint"]:
        """A head's contribution less its mean, in float64."""
        (outputs,) = outputs_of_heads(self._judged.store, [head], self._rows[places])
        norm = self._norm[places].astype(np.float64)
        return (head_coordinates(outputs.astype(np.float64), norm, normalised=True) - mean) @ self._directions(head)

    def _of_head(self, head: Head, mean: Float64[np.ndarray, " coordinate"]) -> HeadScores:
        return HeadScores(mean, self._directions(head), self._judged.vectors)

    def _directions(self, head: Head) -> Float64[np.ndarray, "coordinate joint"]:
        return self._judged.store.head_directions(*head).astype(np.float64)
