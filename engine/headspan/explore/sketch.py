"""Eight-bit sketches of all images, which tell exactly which images can be among the nearest to a query.

A sketch holds each image's coordinates along the leading principal axes in 8 bits, and the length of what they leave
out: rounding, and all other axes. By the inequality of Cauchy and Schwarz, that length times the query's bounds the
difference between the sketched and the true score. Images whose upper bound is below the `count`-th largest lower bound
are not among the nearest; the others are scored exactly by the caller. Nothing is missed, whatever the numbers are; if
they do not follow the axes, more images are left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int8

from headspan.explore.scored import Axes, Scored
from headspan.store.mapped import UnmappableError
from headspan.store.products import over_spans

try:
    import numkong
except ImportError:
    numkong = None  # type: ignore[assignment]

# A number is at most this many steps, and this many standard deviations; larger ones are clipped.
_STEPS, _DEVIATIONS = 127, 5
# The second 8-bit column of a query holds the remainders of the first in this many parts.
_FINER = 254
# The bound of a score's error that a sketch is built for, in standard deviations of the score.
_WANTED = 0.25
# Kernels read so many coordinates at once.
_MULTIPLE = 32
_BLOCK_ROWS, _SCAN_ROWS = 2048, 8192
# No step is smaller than this share of the largest one.
_LEAST_STEP = 1e-3
# What float32 adds to a length, relative to itself, and relative to the numbers that coordinates are sums of.
_SLACK, _SUMS = 1e-5, 2e-6


class SketchedPart:
    """The axes of one part, those that a sketch keeps first, and the unit of each: the step of a kept axis."""

    def __init__(
        self, axes: Axes, order: Int[np.ndarray, " axis"], kept: int, unit: Float64[np.ndarray, " axis"]
    ) -> None:
        self.kept = kept
        self.centre = axes.centre
        # From queries to weights of the axes in their units.
        self.directions = axes.directions[order] * unit[:, None]
        # From coordinates to multiples of the units.
        self.to_units = (axes.to_axes[:, order] / unit).astype(np.float32)
        self.variance = axes.variance[order] / unit**2


@dataclass(frozen=True, slots=True)
class Layout:
    """Which axes a sketch keeps, in which units."""

    parts: list[SketchedPart]

    @property
    def width(self) -> int:
        """The bytes of a row of the sketch."""
        return -(-sum(part.kept for part in self.parts) // _MULTIPLE) * _MULTIPLE

    def weights(self, query: Float32[np.ndarray, " joint"]) -> list[Float64[np.ndarray, " axis"]]:
        """The query along the axes of each part, in their units."""
        return [part.directions @ query for part in self.parts]


def layout_for(parts: list[Axes], query: Float32[np.ndarray, " joint"]) -> Layout:
    """Keep the fewest axes that prune queries like `query` well: those of the largest variance, over all parts."""
    weights = np.concatenate([part.directions @ query for part in parts])
    variance = np.concatenate([part.variance for part in parts])
    place = np.concatenate([np.full(len(part.variance), number) for number, part in enumerate(parts)])
    axis = np.concatenate([np.arange(len(part.variance)) for part in parts])
    order = np.argsort(-variance, kind="stable")
    # Of the axes after the first k: the length of the query, and of an image.
    query_left = np.sqrt(np.append(np.cumsum((weights[order] ** 2)[::-1])[::-1], 0))
    image_left = np.sqrt(np.append(np.cumsum(variance[order][::-1])[::-1], 0))
    # As if the parts did not correlate.
    deviation = np.sqrt((weights**2 * variance).sum())
    enough = np.flatnonzero(query_left * image_left <= _WANTED * deviation)
    count = min(len(order), -(-max(1, int(enough[0])) // _MULTIPLE) * _MULTIPLE)
    chosen = order[:count]
    step = np.sqrt(variance) * _DEVIATIONS / _STEPS
    step = np.maximum(step, max(_LEAST_STEP * float(step.max()), 1e-30))
    # The unit that makes the product of the two lengths the sum of both products of lengths.
    rounded = np.sqrt(((weights * step)[chosen] ** 2).sum()) / max(1e-30, np.sqrt(count / 12))
    left = query_left[count] / max(1e-30, image_left[count])
    other = float(np.sqrt(rounded / left)) if rounded > 0 and left > 0 else 1.0
    found = []
    for number, part in enumerate(parts):
        mine = np.zeros(len(part.variance), bool)
        mine[axis[chosen[place[chosen] == number]]] = True
        unit = np.where(mine, step[place == number], other)
        first = np.argsort(~mine, kind="stable")
        found.append(SketchedPart(part, first, int(mine.sum()), unit[first]))
    return Layout(found)


class Sketch:
    """A sketch of all rows of a store."""

    def __init__(self, scored: Scored, layout: Layout, rows: int, multiple: int) -> None:
        """Read all numbers of `scored` once; blocks begin at multiples of `multiple` rows."""
        if numkong is None:
            raise UnmappableError("numkong is not installed")
        self.layout = layout
        self._numbers: Int8[np.ndarray, "row axis"] = np.zeros((rows, layout.width), np.int8)
        # NaN for rows that are not shown.
        self._left_out = np.empty(rows, np.float32)
        longest = [0.0]

        def build(first_row: int, end: int) -> None:
            with np.errstate(invalid="ignore", over="ignore"):
                for begin in range(first_row, end, _BLOCK_ROWS):
                    stop = min(begin + _BLOCK_ROWS, end)
                    longest.append(self._fill(scored, begin, stop))

        over_spans(rows, multiple, build)
        finite = self._left_out[np.isfinite(self._left_out)]
        self._typical = float(np.sqrt(np.mean(finite.astype(np.float64) ** 2))) if len(finite) else 0.0
        # Of the rows of 8-bit numbers.
        self._longest = max(longest)

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return self._numbers.nbytes + self._left_out.nbytes

    def suits(self, query: Float32[np.ndarray, " joint"]) -> bool:
        """Whether it is expected to prune this query's images well."""
        weights = self.layout.weights(query)
        variance = sum(float(each**2 @ part.variance) for each, part in zip(weights, self.layout.parts, strict=True))
        return _length(weights) * self._typical <= 4 * _WANTED * np.sqrt(variance)

    def survivors(self, query: Float32[np.ndarray, " joint"], count: int, without: int | None) -> np.ndarray:
        """The rows of the store that can be among the `count` rows of the largest scores, apart from `without`."""
        every = self.layout.weights(query)
        weights = np.zeros(self.layout.width)
        kept = np.concatenate([each[: part.kept] for each, part in zip(every, self.layout.parts, strict=True)])
        weights[: len(kept)] = kept
        unit = float(np.abs(weights).max()) / _STEPS or 1.0
        coarse = np.rint(weights / unit)
        fine = np.rint((weights / unit - coarse) * _FINER)
        columns = numkong.dots_pack(np.stack([coarse, fine]).astype(np.int8))
        rows = len(self._numbers)
        sketched = np.empty(rows, np.float32)

        def multiply(first_row: int, end: int) -> None:
            products = np.empty((_SCAN_ROWS, 2), np.int32)
            for begin in range(first_row, end, _SCAN_ROWS):
                stop = min(begin + _SCAN_ROWS, end)
                found = products[: stop - begin]
                numkong.dots_packed(self._numbers[begin:stop], columns, out=numkong.from_dlpack(found))
                here = sketched[begin:stop]
                np.multiply(found[:, 1], np.float32(1 / _FINER), out=here)
                here += found[:, 0]
                here *= np.float32(unit)

        over_spans(rows, _SCAN_ROWS, multiply)
        # What the 8-bit columns and float32 lose of the query and of the sums.
        lost = float(np.linalg.norm(weights - unit * (coarse + fine / _FINER))) * self._longest
        lost += 2.0**-19 * max(-float(sketched.min(initial=0)), float(sketched.max(initial=0)))
        error = self._left_out * np.float32(_length(every) * (1 + _SLACK))
        error += np.float32(lost * (1 + _SLACK))
        return _not_below(sketched, error, count, without)

    def _fill(self, scored: Scored, first_row: int, end: int) -> float:
        """Sketch some rows; return the largest length of their 8-bit numbers."""
        squares, slack = np.zeros((2, end - first_row), np.float32)
        column = 0
        for number, part in enumerate(self.layout.parts):
            block = scored.block(number, first_row, end)
            block -= part.centre
            own = block @ part.to_units
            slack += np.sqrt(np.einsum("rc,rc->r", block, block)) * np.float32(_SUMS * np.linalg.norm(part.to_units))
            rounded = np.rint(own[:, : part.kept])
            np.clip(rounded, -_STEPS, _STEPS, out=rounded)
            self._numbers[first_row:end, column : column + part.kept] = rounded
            own[:, : part.kept] -= rounded
            squares += np.einsum("ra,ra->r", own, own)
            column += part.kept
        self._left_out[first_row:end] = np.sqrt(squares) * np.float32(1 + _SLACK) + slack
        numbers = self._numbers[first_row:end].astype(np.float32)
        return float(np.sqrt(np.einsum("ra,ra->r", numbers, numbers).max(initial=0)))


def _length(weights: list[Float64[np.ndarray, " axis"]]) -> float:
    return float(np.sqrt(sum(float(each @ each) for each in weights)))


def _not_below(
    sketched: Float[np.ndarray, " row"], error: Float[np.ndarray, " row"], count: int, without: int | None
) -> Int[np.ndarray, " some"]:
    """The rows whose upper bound is not below the `count`-th largest lower bound; rows with NaN are left out."""
    lowest = sketched - error
    if without is not None:
        lowest[without] = np.nan
    # The maxima of blocks bound it from below, so that few rows need be sorted.
    block = max(1, len(lowest) // (8 * max(1, count)))
    tops = np.fmax.reduceat(lowest, np.arange(0, len(lowest), block))
    tops = tops[~np.isnan(tops)]
    least = np.partition(tops, -count)[-count] if 0 < count <= len(tops) else -np.inf
    largest = lowest[lowest >= least]
    if count < len(largest):
        least = np.partition(largest, -count)[-count]
    highest = np.add(sketched, error, out=lowest)
    if without is not None:
        highest[without] = np.nan
    return np.flatnonzero(highest >= least)
