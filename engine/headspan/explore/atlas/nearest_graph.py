"""The exact nearest neighbours of every point among all of them, in blocks, on all cores.

Every pair of points is compared, so the time grows with the square of their number: 2 · n² · dimensions operations.
Candidates are found by float32 products; their distances are computed again in float64 from differences.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from jaxtyping import Float32, Int64
from threadpoolctl import threadpool_limits

from headspan.errors import SettingsError
from headspan.events import Listener, Progress

# Points whose neighbours are found in one pass over all points; of these, points that a thread compares at once; and
# points that they are compared with.
_QUERIES, _TOGETHER, _OTHERS = 16_384, 512, 4096
# Candidates beyond the neighbours, since float32 products may exchange points of nearly equal distance.
_MORE = 8
# All points stay in memory if they take no more than this.
_KEPT_BYTES = 512 << 20

# Gives the coordinates of the points at some places.
Read = Callable[[np.ndarray], np.ndarray]
Block = tuple[Int64[np.ndarray, "point neighbour"], Float32[np.ndarray, "point neighbour"]]


def nearest_graph(read: Read, points: int, dimensions: int, count: int, on_progress: Listener) -> Iterator[Block]:
    """Yield places and Euclidean distances of each point's `count` nearest others, nearest first, block by block.

    `read` gives centred float32 coordinates `[point, dimension]` of at most some thousands of points; all points are
    kept if they take at most 512 MB, and else read again for every 16,384 points. Raises SettingsError if there are not
    so many others.
    """
    if not 1 <= count < points:
        raise SettingsError(f"{count} neighbours among {points:,} images: ask for 1 to {points - 1:,}, or 0 for none")
    if 4 * points * dimensions <= _KEPT_BYTES:
        read = _kept(read, points, dimensions).__getitem__
    wanted = min(points, count + 1 + _MORE)
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        for first in range(0, points, _QUERIES):
            places = np.arange(first, min(first + _QUERIES, points))
            queries = [
                _Queries(places[begin : begin + _TOGETHER], read, wanted) for begin in range(0, len(places), _TOGETHER)
            ]
            for begin in range(0, points, _OTHERS):
                others = read(np.arange(begin, min(begin + _OTHERS, points)))
                compare = partial(_Queries.compare, others=others, halves=(others**2).sum(axis=1) / 2, begin=begin)
                list(threads.map(compare, queries))
            found = list(threads.map(lambda each: each.nearest(count), queries))
            yield np.concatenate([each for each, _ in found]), np.concatenate([each for _, each in found])
            on_progress(Progress("neighbours", int(places[-1]) + 1, points))


def _kept(read: Read, points: int, dimensions: int) -> Float32[np.ndarray, "point dimension"]:
    """The coordinates of all points, which are read in blocks."""
    every = np.empty((points, dimensions), np.float32)
    for first in range(0, points, _OTHERS):
        places = np.arange(first, min(first + _OTHERS, points))
        every[places] = read(places)
    return every


class _Queries:
    """Some points, and the nearest points to each so far, with their scores: the larger, the nearer."""

    def __init__(self, own: Int64[np.ndarray, " point"], read: Read, wanted: int) -> None:
        self._own, self._read = own, read
        self._vectors = read(own)
        self._wanted = wanted
        self._places = np.full((len(own), wanted), -1)
        self._scores = np.full((len(own), wanted), -np.inf, np.float32)

    def compare(
        self, others: Float32[np.ndarray, "other dimension"], halves: Float32[np.ndarray, " other"], begin: int
    ) -> None:
        """Compare with further points, of which the first is at the place `begin`. `halves` are ½‖other‖²."""
        scores = self._vectors @ others.T
        scores -= halves
        least = self._scores.min(axis=1)
        if begin == 0 and len(others) > self._wanted:
            # Below the lowest score that stays, so that equal scores stay too.
            lowest = np.partition(scores, -self._wanted, axis=1)[:, -self._wanted]
            least = np.nextafter(lowest, np.float32(-np.inf))
        # Of a flat array, several times as fast as of two axes.
        rows, columns = np.divmod(np.flatnonzero(scores > least[:, None]), len(others))
        if not len(rows):
            return
        # The queries that get further candidates, each with its earlier ones first, padded to one number.
        which, starts, counts = np.unique(rows, return_index=True, return_counts=True)
        numbers = np.repeat(np.arange(len(which)), counts)
        filled = self._wanted + np.arange(len(rows)) - np.repeat(starts, counts)
        values = np.full((len(which), self._wanted + counts.max()), -np.inf, np.float32)
        places = np.full(values.shape, -1)
        values[:, : self._wanted], places[:, : self._wanted] = self._scores[which], self._places[which]
        values[numbers, filled], places[numbers, filled] = scores[rows, columns], columns + begin
        best = np.argsort(-values, axis=1, kind="stable")[:, : self._wanted]
        self._scores[which] = np.take_along_axis(values, best, 1)
        self._places[which] = np.take_along_axis(places, best, 1)

    def nearest(self, count: int) -> Block:
        """The nearest candidates by their exact distances, without the point itself; of equal ones, the first."""
        known, inverse = np.unique(self._places, return_inverse=True)
        candidates = self._read(known)
        distances = np.empty(self._places.shape)
        for place, (query, which) in enumerate(zip(self._vectors, inverse.reshape(distances.shape), strict=True)):
            distances[place] = np.linalg.norm(candidates[which].astype(np.float64) - query, axis=1)
        distances[self._places == self._own[:, None]] = np.inf
        order = np.lexsort((self._places, distances), axis=1)[:, :count]
        ordered = np.take_along_axis(distances, order, 1).astype(np.float32)
        return np.take_along_axis(self._places, order, 1), ordered
