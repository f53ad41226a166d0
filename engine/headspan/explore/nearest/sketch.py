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
from jaxtyping import Bool, Float32, Float64, Int, Int8

from headspan.explore.nearest.scored import Axes, Scored
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
_WANTED = 0.2
# Kernels read so many coordinates at once.
_MULTIPLE = 32
_BLOCK_ROWS, _SCAN_ROWS = 2048, 8192
# No step is smaller than this share of the largest one, nor than this; embeddings have length 1.
_LEAST_STEP, _SMALLEST = 1e-3, 1e-7
# What float32 adds to a length, relative to itself; what it adds to coordinates, relative to the numbers that are added
# up, and to those that they are computed from.
_SLACK, _SUMS, _NUMBERS = 1e-5, 2e-6, 2.0**-21


class SketchedPart:
    """The axes of one part, those that a sketch keeps first.

    Kept axes are counted in steps, and what is left out of them is measured in the joint space; the other axes are
    counted and measured in `other`. Any positive number would do for `other`.
    """

    def __init__(self, axes: Axes, kept: Bool[np.ndarray, " axis"], step: np.ndarray, other: float) -> None:
        first = np.argsort(~kept, kind="stable")
        self.kept = int(kept.sum())
        self.centre = axes.centre
        unit = np.where(kept, step, other)[first]
        # From queries to weights of the axes, in their units, and to the score of the centre.
        self.directions = axes.directions[first] * unit[:, None]
        self.centre_along = axes.centre.astype(np.float64) @ axes.to_axes @ axes.directions
        # From coordinates to multiples of the units.
        self.to_units = (axes.to_axes[:, first] / unit).astype(np.float32)
        self.variance = axes.variance[first] / unit**2
        # The length of each unit where what is left out is measured.
        self.measure = np.where(kept, step, 1.0)[first]


@dataclass(frozen=True, slots=True)
class Layout:
    """Which axes a sketch keeps, in which units."""

    parts: list[SketchedPart]

    @property
    def width(self) -> int:
        """The bytes of a row of the sketch."""
        return -(-sum(part.kept for part in self.parts) // _MULTIPLE) * _MULTIPLE

    def weights(self, query: Float32[np.ndarray, " joint"]) -> list[Float64[np.ndarray, " _"]]:
        """The query along the axes of each part, in their units."""
        return [part.directions @ query for part in self.parts]

    def length(self, weights: list[Float64[np.ndarray, " _"]]) -> float:
        """The length of a query where what is left out is measured."""
        squares = (float(((w / part.measure) ** 2).sum()) for w, part in zip(weights, self.parts, strict=True))
        return float(np.sqrt(sum(squares)))


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
    step = np.maximum(step, max(_LEAST_STEP * float(step.max()), _SMALLEST))
    # The unit that makes the product of the two lengths the sum of both products of lengths.
    of_query, of_image = np.sqrt((weights[chosen] ** 2).sum()), np.sqrt((step[chosen] ** 2).sum() / 12)
    kept, left = of_query * image_left[count], of_image * query_left[count]
    other = float(np.sqrt(kept / left)) if kept > 0 and left > 0 else 1.0
    found = []
    for number, part in enumerate(parts):
        mine = np.zeros(len(part.variance), bool)
        mine[axis[chosen[place[chosen] == number]]] = True
        found.append(SketchedPart(part, mine, step[place == number], other))
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
        return bool(self.layout.length(weights) * self._typical <= 4 * _WANTED * np.sqrt(variance))

    def survivors(
        self, query: Float32[np.ndarray, " joint"], count: int, without: int | None
    ) -> tuple[Int[np.ndarray, " some"], Float64[np.ndarray, " some"]]:
        """The rows of the store that can be among the `count` rows of the largest scores, apart from `without`.

        The second array holds the upper bounds of their scores; the rows are in descending order of these.
        """
        every = self.layout.weights(query)
        weights = np.zeros(self.layout.width)
        kept = np.concatenate([each[: part.kept] for each, part in zip(every, self.layout.parts, strict=True)])
        weights[: len(kept)] = kept
        length = self.layout.length(every)
        centre = float(sum(part.centre_along @ query for part in self.layout.parts))
        if length == 0:
            # All scores are equal.
            shown = np.flatnonzero(~np.isnan(self._left_out))
            return shown[shown != without], np.full((shown != without).sum(), np.inf)
        unit = float(np.abs(weights).max()) / _STEPS or 1.0
        coarse = np.rint(weights / unit)
        fine = np.rint((weights / unit - coarse) * _FINER)
        columns = numkong.dots_pack(np.stack([coarse, fine]).astype(np.int8))
        rows = len(self._numbers)
        lowest, highest = np.empty((2, rows), np.float32)
        largest = [abs(centre)]

        def multiply(first_row: int, end: int) -> None:
            products, buffer = np.empty((_SCAN_ROWS, 2), np.int32), np.empty(_SCAN_ROWS, np.float32)
            for begin in range(first_row, end, _SCAN_ROWS):
                stop = min(begin + _SCAN_ROWS, end)
                found, here = products[: stop - begin], buffer[: stop - begin]
                numkong.dots_packed(self._numbers[begin:stop], columns, out=numkong.from_dlpack(found))
                np.multiply(found[:, 1], np.float32(1 / _FINER), out=here)
                here += found[:, 0]
                here *= np.float32(unit)
                error = self._left_out[begin:stop] * np.float32(length * (1 + _SLACK))
                np.subtract(here, error, out=lowest[begin:stop])
                np.add(here, error, out=highest[begin:stop])
                largest.append(float(max(here.max(), -here.min())))

        over_spans(rows, _SCAN_ROWS, multiply)
        # What the 8-bit columns and float32 lose of the query and of the sums, which is the same for all rows.
        lost = float(np.linalg.norm(weights - unit * (coarse + fine / _FINER))) * self._longest
        lost = (lost + 2.0**-19 * max(largest)) * (1 + _SLACK)
        if without is not None:
            lowest[without] = highest[without] = np.nan
        left = np.flatnonzero(highest >= np.float32(_largest(lowest, count) - 2 * lost))
        bounds = highest[left].astype(np.float64) + (lost + centre)
        order = np.argsort(-bounds, kind="stable")
        return left[order], bounds[order]

    def _fill(self, scored: Scored, first_row: int, end: int) -> float:
        """Sketch some rows; return the largest length of their 8-bit numbers."""
        squares, slack = np.zeros((2, end - first_row), np.float32)
        column = 0
        for number, part in enumerate(self.layout.parts):
            block = scored.block(number, first_row, end)
            size = np.float32(_NUMBERS) * np.sqrt(np.einsum("rc,rc->r", block, block))
            block -= part.centre
            own = block @ part.to_units
            size += np.float32(_SUMS) * np.sqrt(np.einsum("rc,rc->r", block, block))
            slack += size * np.float32(np.linalg.norm(part.to_units * part.measure))
            rounded = np.rint(own[:, : part.kept])
            np.clip(rounded, -_STEPS, _STEPS, out=rounded)
            self._numbers[first_row:end, column : column + part.kept] = rounded
            own[:, : part.kept] -= rounded
            np.square(own, out=own)
            squares += own @ (part.measure**2).astype(np.float32)
            column += part.kept
        self._left_out[first_row:end] = np.sqrt(squares) * np.float32(1 + _SLACK) + slack
        numbers = self._numbers[first_row:end].astype(np.float32)
        return float(np.sqrt(np.einsum("ra,ra->r", numbers, numbers).max(initial=0)))


def _largest(values: Float32[np.ndarray, " row"], count: int) -> float:
    """The `count`-th largest of some values without NaN; minus infinity if they are fewer."""
    # The maxima of blocks bound it from below, so that few rows need be sorted.
    block = max(1, len(values) // (8 * max(1, count)))
    tops = np.fmax.reduceat(values, np.arange(0, len(values), block))
    tops = tops[~np.isnan(tops)]
    least = np.partition(tops, -count)[-count] if 0 < count <= len(tops) else -np.inf
    found = values[values >= least]
    return float(np.partition(found, -count)[-count]) if count <= len(found) else -np.inf
