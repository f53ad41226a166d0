"""Eight-bit sketches of all images, which tell exactly which images can be among the nearest to a query.

A sketch holds each image's coordinates along the leading principal axes of the joint space in 8 bits, and the length of
what they leave out: rounding, and all other axes. By the inequality of Cauchy and Schwarz, that length times the
query's bounds the difference between the sketched and the true score. The axes are those of the vectors that queries
are multiplied with, such as the mean contribution of many heads: a sketch of eleven heads is as large as one of one.

A query reads the first axes of all images. Their product includes the bound, as one more number, so it is an upper
bound of each score; `survivors` says which images are left by it. Of these, the other kept axes are read. A sketch of
one head has all of its axes among the first ones, since texts lie across them: with fewer, thousands of images would be
left, which takes longer than the further axes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, Int8, Int32

from headspan.explore.nearest.scored import Axes, Sketchable
from headspan.store.mapped import UnmappableError

try:
    import numkong
except ImportError:
    numkong = None  # type: ignore[assignment]

# A number is at most this many steps, and this many standard deviations; larger ones are clipped.
STEPS, DEVIATIONS = 127, 5
# The first axes of a row, with the bound: of few coordinates, as of one head, and of more. Kernels take as long for
# short rows as for long ones, so `_TOGETHER` rows are multiplied as one, with as many columns, each of which has the
# query in another place.
_BYTES_OF_FEW, _FIRST_BYTES, _FEW, _TOGETHER = 64, 32, 144, 4
# What is allocated is a multiple of so many rows.
BLOCK = 512
# Further axes are kept until the bound of a score's error is so many standard deviations of the score.
_WANTED, _MULTIPLE, _MOST_AXES = 0.2, 16, 63
# This share of the rows have a larger bound than the eight bits can say; they are always looked at.
FAR_ROWS = 1e-4
FILL_ROWS = 2048
# All rows are read where more than this part of them is asked for. Lengths are kept in so many steps.
_MOST_TAKEN, _LENGTHS = 4, 255
# No step is smaller than this share of the largest one, nor than this; embeddings have length 1.
LEAST_STEP, _SMALLEST = 1e-3, 1e-7
# What float32 adds to a length, relative to itself; what it adds to coordinates, relative to the numbers that are added
# up, and to those that they are computed from; what float64 adds to a score.
SLACK, _SUMS, _NUMBERS, EXACT = 1e-5, 4e-6, 2.0**-21, 1e-12


@dataclass(frozen=True, slots=True)
class Products:
    """Upper bounds of the scores of all rows with one query."""

    # Computes them in units, without `offset`, for the given rows, or for all rows if these are None. The values of
    # rows that are not shown, that are far, or that follow the first `rows` ones are no bounds.
    upper: Callable[[Int[np.ndarray, " some"] | None], Int32[np.ndarray, " row"]]
    # Computes looser bounds of some rows in units, in less time, from the rows' lengths. `most` is the largest one.
    rough: Callable[[Int[np.ndarray, " some"]], Float32[np.ndarray, " some"]]
    most: float
    # The factor of each row's own bound in `upper`.
    bound_weight: int
    unit: float
    offset: float
    # The usual difference between bound and score, and the variance of the scores.
    error: float
    variance: float
    # Estimates of the scores of some rows from all kept axes, and closer bounds.
    bounds: Callable[[Int[np.ndarray, " some"]], tuple[Float64[np.ndarray, " some"], Float64[np.ndarray, " some"]]]
    rows: int
    # Rows that are not shown, and rows whose bounds eight bits cannot say.
    hidden: Int[np.ndarray, " hidden"]
    far: Int[np.ndarray, " far"]


@dataclass(frozen=True, slots=True)
class _Kept:
    """The first `axes` axes in 8 bits, and how the lengths of what they leave out are measured.

    Rounding counts `scale` times in lengths of images, and as many times less in those of queries: without it, the
    small rounding would be multiplied with the large weights of the kept axes, together with the rest.
    """

    axes: int
    scale: float

    @classmethod
    def of(cls, axes: Axes, step: Float64[np.ndarray, " axis"], kept: int) -> _Kept:
        """The scale that makes the product of both lengths the sum of two products, for queries like the images."""
        rounding, rest = float((step[:kept] ** 2).sum()) / 12, float(axes.variance[kept:].sum())
        of_kept, of_rest = float(axes.square[:kept].sum()), float(axes.square[kept:].sum())
        if min(rounding, rest, of_kept, of_rest) <= 0:
            return cls(kept, 1.0)
        return cls(kept, float(np.clip((rest * of_kept / (rounding * of_rest)) ** 0.25, 1, 64)))

    def length(self, along: Float64[np.ndarray, " axis"]) -> float:
        """The length of a query."""
        kept, rest = along[: self.axes] / self.scale, along[self.axes :]
        return float(np.sqrt(kept @ kept + rest @ rest))


class Sketch:
    """A sketch of all rows of a store."""

    def __init__(self, scored: Sketchable, rows: int) -> None:
        """Read all numbers of `scored` once, in this thread."""
        if numkong is None:
            raise UnmappableError("numkong is not installed")
        self._axes = axes = scored.axes(rows)
        step = np.sqrt(axes.variance) * DEVIATIONS / STEPS
        self._step = step = np.maximum(step, max(LEAST_STEP * float(step.max()), _SMALLEST))
        first_bytes = _first_bytes(scored.coordinates)
        first, first_alone = min(first_bytes - 1, len(step)), first_bytes == _BYTES_OF_FEW
        self._few = _Kept.of(axes, step, first)
        self._many = self._few if first_alone else _Kept.of(axes, step, _enough(axes, step, first))
        padded = -(-rows // BLOCK) * BLOCK
        self._rows = rows
        self._first: Int8[np.ndarray, "row axis"] = np.zeros((padded, first_bytes), np.int8)
        self._rest: Int8[np.ndarray, "row axis"] = np.zeros((rows, self._many.axes - first), np.int8)
        # Closer than what the rows say, where further axes are kept. NaN for rows that are not shown.
        self._left_out = np.empty(0 if first_alone else rows, np.float32)
        left_by_first, lengths = np.empty(rows, np.float32), np.empty(rows, np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for begin in range(0, rows, FILL_ROWS):
                self._fill(scored, begin, min(begin + FILL_ROWS, rows), left_by_first, lengths)
        # Of a row's first axes in steps; and each row's, in shares of the longest one.
        self._longest = float(lengths.max(initial=0)) * (1 + SLACK)
        self._lengths = np.ceil(lengths * np.float32(_LENGTHS / max(self._longest, 1))).astype(np.uint8)
        self._hidden = np.flatnonzero(np.isnan(left_by_first))
        left_by_first[self._hidden] = 0
        finite = left_by_first[np.isfinite(left_by_first)]
        largest = float(np.quantile(finite, 1 - FAR_ROWS)) if len(finite) else 0.0
        self._bound_step = max(largest / STEPS, _SMALLEST)
        bounds = np.ceil(left_by_first / np.float32(self._bound_step) * np.float32(1 + SLACK))
        self._far = np.flatnonzero(bounds > STEPS)
        self._bounds = np.minimum(bounds, STEPS).astype(np.int8)
        self._first[:rows, -1] = self._bounds
        self._typical = float(np.sqrt(np.mean(finite.astype(np.float64) ** 2))) if len(finite) else 0.0

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        every = (self._first, self._rest, self._left_out, self._lengths, self._bounds)
        return sum(each.nbytes for each in every)

    @staticmethod
    def most_bytes(rows: int, coordinates: int) -> int:
        """The most memory that a sketch of so many rows with so many coordinates takes."""
        alone = _first_bytes(coordinates) == _BYTES_OF_FEW
        return -(-rows // BLOCK) * BLOCK * (2 + (_BYTES_OF_FEW if alone else 4 + _MOST_AXES + 1))

    def both_ends(self, query: Float32[np.ndarray, " joint"]) -> tuple[Products, Products]:
        """The `products` of a query and of its negative; all rows are read once, when `upper` is."""
        top, bottom = self.products(query), self.products(-query)
        upper = top.upper(None)
        # An upper bound is the score and the row's own bound, which that of the negative score has too.
        negative = -upper
        negative[: self._rows] += np.multiply(self._bounds, 2 * top.bound_weight, dtype=np.int32)
        return replace(top, upper=_some_of(upper)), replace(bottom, upper=_some_of(negative))

    def products(self, query: Float32[np.ndarray, " joint"]) -> Products:
        """Upper bounds of the scores of all rows with a query, from the first axes."""
        along = self._axes.directions @ query.astype(np.float64)
        centre = float(self._axes.centre_vector @ query)
        weights, length = along[: self._few.axes] * self._step[: self._few.axes], self._few.length(along)
        longest = max(float(np.abs(weights).max(initial=0)), self._bound_step * length)
        unit = longest / STEPS or 1.0
        coarse = np.rint(weights / unit)
        of_bound = int(np.ceil(self._bound_step * length / unit * (1 - EXACT)))
        one = np.zeros(self._first.shape[1])
        one[: len(weights)], one[-1] = coarse, of_bound
        packed = numkong.dots_pack(np.kron(np.eye(_TOGETHER), one).astype(np.int8))

        def upper(some: Int[np.ndarray, " some"] | None) -> Int32[np.ndarray, " row"]:
            if some is None:
                return _multiplied(self._first, packed)
            if _MOST_TAKEN * len(some) > self._rows:
                return np.take(_multiplied(self._first, packed), some)
            return _multiplied(np.take(self._first, _multiple_of(some, _TOGETHER), axis=0), packed)[: len(some)]

        # What the 8-bit weights lose, which is the same for all rows, and float64.
        lost = float(np.linalg.norm(weights - unit * coarse)) * self._longest * (1 + SLACK)
        rounding = EXACT * (abs(centre) + longest * STEPS * len(one))
        many = self._many.length(along) * (1 + SLACK)

        def bounds(rows: Int[np.ndarray, " some"]) -> tuple[Float64[np.ndarray, " some"], Float64[np.ndarray, " some"]]:
            estimates = self._estimates(rows, along) + centre
            return estimates, estimates + (self._left_out_of(rows) * many + rounding)

        of_length = float(np.linalg.norm(coarse)) * self._longest * (1 + SLACK)

        def rough(some: Int[np.ndarray, " some"]) -> Float32[np.ndarray, " some"]:
            found = np.take(self._lengths, some) * np.float32(of_length / _LENGTHS * (1 + SLACK))
            return found + np.take(self._bounds, some) * np.float32(of_bound)

        variance = float((along**2) @ self._axes.variance)
        return Products(
            upper=upper,
            rough=rough,
            most=of_length + STEPS * of_bound,
            bound_weight=of_bound,
            unit=unit,
            offset=centre + lost + rounding,
            error=self._typical * length,
            variance=variance,
            bounds=bounds,
            rows=self._rows,
            hidden=self._hidden,
            far=self._far,
        )

    def _left_out_of(self, rows: Int[np.ndarray, " some"]) -> Float64[np.ndarray, " some"]:
        """The lengths of what all kept axes leave out of some rows, or more."""
        if len(self._left_out):
            return self._left_out[rows].astype(np.float64)
        found = np.take(self._bounds, rows) * self._bound_step
        # Finite, since it may be multiplied with 0.
        found[np.isin(rows, self._far)] = np.finfo(np.float32).max
        return found

    def _estimates(
        self, rows: Int[np.ndarray, " some"], along: Float64[np.ndarray, " axis"]
    ) -> Float64[np.ndarray, " some"]:
        """The products of all kept axes with a query, without the centre's."""
        weights, first = along[: self._many.axes] * self._step[: self._many.axes], np.zeros(self._first.shape[1])
        first[: self._few.axes] = weights[: self._few.axes]
        # `take` is quicker than an index.
        found = np.take(self._first, rows, axis=0).astype(np.float64) @ first
        return found + np.take(self._rest, rows, axis=0).astype(np.float64) @ weights[self._few.axes :]

    def _fill(
        self,
        scored: Sketchable,
        first_row: int,
        end: int,
        left_by_first: Float32[np.ndarray, " row"],
        lengths: Float32[np.ndarray, " row"],
    ) -> None:
        """Sketch some rows, with what their first axes leave out, and the lengths of these, in steps."""
        axes, first, many = self._axes, self._few.axes, self._many.axes
        to_axes, here = axes.to_axes.astype(np.float32), slice(first_row, end)
        block = scored.block(first_row, end)
        size = np.float32(_NUMBERS) * np.sqrt(np.einsum("rc,rc->r", block, block))
        block -= axes.centre
        size += np.float32(_SUMS) * np.sqrt(np.einsum("rc,rc->r", block, block))
        slack = size * np.float32(np.linalg.norm(to_axes))
        own, step = block @ to_axes, self._step[:many].astype(np.float32)
        rounded = np.clip(np.rint(own[:, :many] / step), -STEPS, STEPS)
        rounded[~np.isfinite(rounded)] = 0
        self._first[here, :first], self._rest[here] = rounded[:, :first], rounded[:, first:]
        rounding = own[:, :many] - rounded * step
        for kept, left in ((self._few, left_by_first), (self._many, self._left_out))[: 1 + bool(len(self._left_out))]:
            squares = np.float32(kept.scale**2) * _squares(rounding[:, : kept.axes]) + _squares(own[:, kept.axes :])
            left[here] = np.sqrt(squares) * np.float32(1 + SLACK) + slack * np.float32(kept.scale)
        lengths[here] = np.sqrt(_squares(rounded[:, :first]))


def _first_bytes(coordinates: int) -> int:
    return _BYTES_OF_FEW if coordinates <= _FEW else _FIRST_BYTES


def _multiplied(rows: Int8[np.ndarray, "row axis"], packed: Any) -> Int32[np.ndarray, " row"]:
    """The products of rows, whose number is a multiple of `_TOGETHER`, with a packed query."""
    found = np.empty((len(rows) // _TOGETHER, _TOGETHER), np.int32)
    numkong.dots_packed(rows.reshape(len(found), -1), packed, out=numkong.from_dlpack(found))
    return found.reshape(-1)


def _multiple_of(rows: Int[np.ndarray, " some"], count: int) -> Int[np.ndarray, " more"]:
    """Rows, with further ones so that their number is a multiple of `count`."""
    return np.concatenate([rows, np.zeros(-len(rows) % count, rows.dtype)])


def _some_of(
    upper: Int32[np.ndarray, " row"],
) -> Callable[[Int[np.ndarray, " some"] | None], Int32[np.ndarray, " row"]]:
    return lambda some: upper if some is None else upper[some]


def _squares(values: Float32[np.ndarray, "row axis"]) -> Float32[np.ndarray, " row"]:
    found: Float32[np.ndarray, " row"] = np.einsum("ra,ra->r", values, values)
    return found


def _enough(axes: Axes, step: Float64[np.ndarray, " axis"], first: int) -> int:
    """How many axes bound the scores of queries like the images well; `first` or more by multiples."""
    deviation = np.sqrt((axes.square * axes.variance).sum())
    count = first
    while count < min(len(step), _MOST_AXES):
        of_kept, rounding = axes.square[:count].sum(), (step[:count] ** 2).sum() / 12
        of_rest, rest = axes.square[count:].sum(), axes.variance[count:].sum()
        if np.sqrt(of_kept * rounding) + np.sqrt(of_rest * rest) <= _WANTED * deviation:
            break
        count = min(count + _MULTIPLE, len(step), _MOST_AXES)
    return count
