"""All coordinates of all images in eight bits, for queries that lie across the axes of sketches, as texts do.

A text's vector has about as much of its length along each axis of the embeddings, so that no few axes bound its scores
well. Here every number is kept, rounded to a step of its own. By the inequality of Cauchy and Schwarz, the length of
what rounding leaves of an image bounds the error of its score for a query of length 1.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int, Int8, Int32

from headspan.explore.nearest.scored import Sketchable
from headspan.explore.nearest.sketch import (
    BLOCK,
    DEVIATIONS,
    EXACT,
    FAR_ROWS,
    FILL_ROWS,
    LEAST_STEP,
    SLACK,
    STEPS,
    Products,
)
from headspan.store.mapped import UnmappableError

try:
    import numkong
except ImportError:
    numkong = None  # type: ignore[assignment]

# Sums of products of steps stay below this, so that float32 holds them exactly; others it rounds by this at most,
# relative to the product of both lengths and the number of terms.
_LARGEST_SUM, _TERM = 1 << 24, 2.0**-23
# No step is smaller than this.
_SMALLEST = 1e-9
# What float32 adds to a row, relative to its length.
_NUMBERS = 2.0**-20
# Rows that the variance of a query's scores is told from.
_EVERY = 512


class EightBits:
    """The coordinates in joint space of all rows of a store."""

    def __init__(self, scored: Sketchable, rows: int) -> None:
        """Read all numbers of `scored` once, in this thread. Its coordinates are those of joint space."""
        if numkong is None:
            raise UnmappableError("numkong is not installed")
        sample = scored.sample(rows).astype(np.float64)
        width = scored.directions.shape[1]
        deviation = sample.std(axis=0) if len(sample) else np.zeros(width)
        step = deviation * DEVIATIONS / STEPS
        self._step = np.maximum(step, max(LEAST_STEP * float(step.max(initial=0)), _SMALLEST)).astype(np.float32)
        self._centre = sample.mean(axis=0).astype(np.float32) if len(sample) else np.zeros(width, np.float32)
        self._rows = rows
        self._steps: Int8[np.ndarray, "row joint"] = np.zeros((-(-rows // BLOCK) * BLOCK, width), np.int8)
        left_out, longest = np.empty(rows, np.float32), 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            for begin in range(0, rows, FILL_ROWS):
                longest = max(longest, self._fill(scored, begin, min(begin + FILL_ROWS, rows), left_out))
        # In steps, with what float32 adds.
        self._longest = longest * (1 + SLACK)
        self._hidden = np.flatnonzero(np.isnan(left_out))
        shown = left_out[np.isfinite(left_out)]
        self._left_out = float(np.quantile(shown, 1 - FAR_ROWS)) if len(shown) else 0.0
        self._far = np.flatnonzero(left_out > self._left_out)
        # Finite, since it may be multiplied with 0.
        self._far_left_out = np.minimum(left_out[self._far], np.finfo(np.float32).max).astype(np.float64)

    @property
    def bytes(self) -> int:
        """The memory that it takes."""
        return self._steps.nbytes

    @staticmethod
    def most_bytes(rows: int, joint: int) -> int:
        """The most memory that so many rows take."""
        return -(-rows // BLOCK) * BLOCK * joint

    def products(self, query: Float32[np.ndarray, " joint"]) -> Products:
        """Upper bounds of the scores of all rows with a query."""
        wide = query.astype(np.float64)
        weights, centre, length = wide * self._step, float(self._centre @ wide), float(np.linalg.norm(wide))
        # The query's own steps.
        most = min(STEPS, _LARGEST_SUM // (STEPS * len(weights)))
        unit = float(np.abs(weights).max(initial=0)) / most or 1.0
        coarse = np.rint(weights / unit)
        lost = float(np.linalg.norm(weights - unit * coarse)) * self._longest
        rounding = EXACT * (abs(centre) + float(np.abs(weights).sum()) * STEPS)
        error = length * self._left_out * (1 + SLACK)
        single = weights.astype(np.float32)
        of_single = _TERM * len(weights) * float(np.linalg.norm(weights)) * self._longest

        def upper(some: Int[np.ndarray, " some"] | None) -> Int32[np.ndarray, " row"]:
            read = self._steps if some is None else np.take(self._steps, some, axis=0)
            found = np.empty((len(read), 1), np.float32)
            numkong.cdist(read, coarse.astype(np.int8)[None], "dot", out=numkong.from_dlpack(found))
            return found.reshape(-1).astype(np.int32)

        def bounds(rows: Int[np.ndarray, " some"]) -> tuple[Float64[np.ndarray, " some"], Float64[np.ndarray, " some"]]:
            # `take` is quicker than an index, and float32 than float64.
            estimates = (np.take(self._steps, rows, axis=0).astype(np.float32) @ single).astype(np.float64) + centre
            left_out = np.full(len(rows), self._left_out)
            _, here, of_far = np.intersect1d(rows, self._far, assume_unique=True, return_indices=True)
            left_out[here] = self._far_left_out[of_far]
            return estimates, estimates + (length * (1 + SLACK) * left_out + rounding + of_single)

        sampled = self._some @ single
        largest = float(np.linalg.norm(coarse)) * self._longest

        def rough(some: Int[np.ndarray, " some"]) -> Float32[np.ndarray, " some"]:
            return np.full(len(some), largest, np.float32)

        return Products(
            upper=upper,
            rough=rough,
            most=largest,
            bound_weight=0,
            unit=unit,
            offset=centre + lost + error + rounding,
            error=error + lost,
            variance=float(sampled.var()) if len(sampled) else 0.0,
            bounds=bounds,
            rows=self._rows,
            hidden=self._hidden,
            far=self._far,
        )

    @cached_property
    def _some(self) -> Float32[np.ndarray, "some joint"]:
        return self._steps[: self._rows : max(1, self._rows // _EVERY)].astype(np.float32)

    def _fill(self, scored: Sketchable, first_row: int, end: int, left_out: Float32[np.ndarray, " row"]) -> float:
        """Round some rows; the largest length of one in steps."""
        block = scored.block(first_row, end)
        size = np.float32(_NUMBERS) * _lengths(block)
        block -= self._centre
        size += np.float32(_NUMBERS) * _lengths(block)
        steps = block / self._step
        np.rint(steps, out=steps)
        np.clip(steps, -STEPS, STEPS, out=steps)
        steps[~np.isfinite(steps)] = 0
        self._steps[first_row:end] = steps
        block -= steps * self._step
        left_out[first_row:end] = _lengths(block) * np.float32(1 + SLACK) + size
        return float(_lengths(steps).max(initial=0))


def _lengths(values: Float32[np.ndarray, "row coordinate"]) -> Float32[np.ndarray, " row"]:
    found: Float32[np.ndarray, " row"] = np.sqrt(np.einsum("rc,rc->r", values, values))
    return found
