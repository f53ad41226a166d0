"""The largest codes of each feature, kept while blocks pass: those of different images, or of different captions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64

from headspan.features.scores.codes import Codes, rows_of

# Candidates that wait before they are merged with what is kept.
_WAITING = 1 << 20


class RunningTop:
    """The `size` largest codes of each feature. Equal codes are ordered by number, so blocks do not matter."""

    def __init__(self, features: int, size: int) -> None:
        self.features, self.size = features, size
        # The smallest code that can still enter, by feature.
        self._least = np.zeros(features, np.float32)
        self._kept = (np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._count = 0

    def add(self, codes: Codes, number: Int64[np.ndarray, " vector"], image: Int64[np.ndarray, " vector"]) -> None:
        """Add codes. A `number` is kept once for a feature, with its smallest `image`."""
        values = codes.data.astype(np.float32)
        candidates = np.flatnonzero(values >= self._least[codes.indices])
        rows = rows_of(codes)[candidates]
        found = codes.indices[candidates].astype(np.int64), values[candidates], number[rows], image[rows]
        self._waiting.append(found)
        self._count += len(candidates)
        if self._count >= _WAITING:
            self._merge()

    def tables(
        self,
    ) -> tuple[Int64[np.ndarray, "feature top"], Float32[np.ndarray, "feature top"], Int64[np.ndarray, "feature top"]]:
        """Numbers, codes and images, the largest codes first; −1, 0 and −1 where a feature has fewer."""
        self._merge()
        feature, value, number, image = self._kept
        places = _ranks(feature)
        numbers, images = (np.full((self.features, self.size), -1, np.int64) for _ in range(2))
        codes = np.zeros((self.features, self.size), np.float32)
        numbers[feature, places], codes[feature, places], images[feature, places] = number, value, image
        return numbers, codes, images

    def _merge(self) -> None:
        if not self._waiting:
            return
        feature, value, number, image = map(np.concatenate, zip(self._kept, *self._waiting, strict=True))
        self._waiting, self._count = [], 0
        # Each number once for a feature: with its largest code, and of these with its smallest image.
        order = np.lexsort((image, -value, number, feature))
        feature, value, number, image = (each[order] for each in (feature, value, number, image))
        new = np.ones(len(feature), np.bool_)
        new[1:] = (feature[1:] != feature[:-1]) | (number[1:] != number[:-1])
        feature, value, number, image = (each[new] for each in (feature, value, number, image))
        order = np.lexsort((number, -value, feature))
        feature, value, number, image = (each[order] for each in (feature, value, number, image))
        ranks = _ranks(feature)
        last = ranks == self.size - 1
        self._least[feature[last]] = value[last]
        kept = ranks < self.size
        self._kept = (feature[kept], value[kept], number[kept], image[kept])


def _ranks(feature: Int64[np.ndarray, " entry"]) -> Int64[np.ndarray, " entry"]:
    """The place of each entry among those of its feature; entries are sorted by feature."""
    begins = np.flatnonzero(np.diff(feature, prepend=-1))
    lengths = np.diff(np.append(begins, len(feature)))
    return np.arange(len(feature)) - np.repeat(begins, lengths)
