"""Which images are inside a polygon of a plane, found by a grid over the plane's points.

Cells that no edge of the polygon comes near are inside or outside as a whole; only the points of the other cells are
compared with the edges one by one. The result equals that of comparing all points.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, UInt16

from headspan.store.head_space import Head
from headspan.web.asked import AskedStore
from headspan.web.planes import all_points
from headspan.web.samples.filters import Corner, inside

# Cells along each axis; the number of a cell has 16 bits.
_CELLS = 128
# How far an edge must be from a cell, in cells, and in roundings of the largest number that is compared.
_NEAR, _ROUNDINGS = 0.01, 16 * np.finfo(np.float32).eps
_OUTSIDE, _INSIDE, _BORDER = 0, 1, 2


class PlaneGrid:
    """The points of a plane and the cells that they are in."""

    def __init__(self, points: Float32[np.ndarray, "image 2"]) -> None:
        self._points = points
        self._low = points.min(axis=0, initial=np.inf).astype(np.float64)
        high = points.max(axis=0, initial=-np.inf).astype(np.float64)
        # Of points on a line, or of none, all cells of an axis have the same size.
        self._size = np.maximum((high - self._low) / _CELLS, np.finfo(np.float32).tiny)
        self._largest = float(np.abs(points).max(initial=0))
        column, row = (self._cells_along(axis) for axis in (0, 1))
        self._cells: UInt16[np.ndarray, " image"] = row * np.uint16(_CELLS) + column
        self._occupied = np.bincount(self._cells, minlength=_CELLS**2) > 0

    @property
    def bytes(self) -> int:
        """The memory that it takes beside the points."""
        return self._cells.nbytes + self._occupied.nbytes

    def inside(self, polygon: tuple[Corner, ...]) -> Bool[np.ndarray, " image"]:
        """Whether each point is inside a polygon, as `samples.filters.inside` says."""
        if not len(self._points):
            return np.zeros(0, bool)
        kinds = self._kinds(polygon)
        found = np.unique(kinds[self._occupied])
        if len(found) == 1 and found[0] != _BORDER:
            return np.full(len(self._points), found[0] == _INSIDE)
        of_points = np.take(kinds, self._cells)
        mask = of_points == _INSIDE
        border = np.flatnonzero(of_points == _BORDER)
        mask[border] = inside(self._points[border], polygon)
        return mask

    def _cells_along(self, axis: int) -> UInt16[np.ndarray, " image"]:
        # In float32, whose roundings `_near` allows for.
        place = (self._points[:, axis] - np.float32(self._low[axis])) / np.float32(self._size[axis])
        return np.clip(place, 0, _CELLS - 1).astype(np.uint16)

    def _kinds(self, polygon: tuple[Corner, ...]) -> np.ndarray:
        """Whether each cell is inside or outside, or may have an edge in it."""
        corners = (np.array(polygon, np.float64) - self._low) / self._size
        near = _NEAR + _ROUNDINGS * (self._largest + float(np.abs(polygon).max())) / self._size
        border = np.zeros((_CELLS, _CELLS), bool)
        rows = np.arange(_CELLS, dtype=np.float64)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            # The part of the edge beside each row of cells.
            bottom, top = np.maximum(min(y0, y1), rows - near[1]), np.minimum(max(y0, y1), rows + 1 + near[1])
            beside = np.flatnonzero(bottom <= top)
            slope = (x1 - x0) / (y1 - y0) if y0 != y1 else 0.0
            ends = np.stack([x0 + (y[beside] - y0) * slope for y in (bottom, top)])
            if y0 == y1:
                ends = np.broadcast_to(np.array([[x0], [x1]]), ends.shape)
            left = np.clip(np.floor(ends.min(axis=0) - near[0]), 0, _CELLS).astype(int)
            right = np.clip(np.floor(ends.max(axis=0) + near[0]), -1, _CELLS - 1).astype(int)
            for row, first, last in zip(beside.tolist(), left.tolist(), right.tolist(), strict=True):
                border[row, first : last + 1] = True
        kinds = np.full(_CELLS**2, _BORDER, np.uint8)
        whole = np.flatnonzero(~border.ravel() & self._occupied)
        centres = np.stack([whole % _CELLS, whole // _CELLS], axis=1) + 0.5
        kinds[whole] = np.where(inside(centres, tuple(map(tuple, corners.tolist()))), _INSIDE, _OUTSIDE)
        return kinds


def inside_region(asked: AskedStore, head: Head | None, polygon: tuple[Corner, ...]) -> Bool[np.ndarray, " image"]:
    """Whether each image is inside a polygon of the plane of a head, or with None of the embeddings."""
    grid = asked.keep(("grid", head), lambda: PlaneGrid(all_points(asked, head)), lambda grid: grid.bytes)
    return grid.inside(polygon)
