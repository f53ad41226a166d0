"""Which images can be among the nearest, from the upper bounds of sketches.

The images of the largest bounds are scored exactly; all others whose bounds are lower than the `count`-th of these
scores are not among the nearest. Nothing is missed, whatever the numbers are. If they do not follow the axes of the
sketches, or the query lies across them, as texts do, too many images are left, and the caller reads all numbers.
Scores may be sums, such as an embedding's without some heads: then the bounds of all parts are added. Where all numbers
are kept in eight bits, these leave a tenth of the survivors or fewer, without reading the store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64, Int, Int32

from headspan.explore.nearest.sketch import BLOCK, Products

# A query is not tried whose bounds are more standard deviations of its scores.
_HOPELESS = 4.0
# More images than this share are not looked at one by one.
_MOST_LEFT = 1 / 16
# Images of the largest bounds that are looked at first, for each one that is asked for, and at least; and of these, how
# many at least are scored. Where bounds are wide, as those of texts, the `count` best estimates are often not the best:
# where they are narrow, by so many standard deviations of the scores, fewer are scored.
_CANDIDATES, _LEAST_CANDIDATES, _LEAST_SCORED, _LEAST_OF_NARROW = 4, 256, 64, 24
_NARROW = 1.5
_Exact = Callable[[Int[np.ndarray, " some"]], Float64[np.ndarray, " some"]]


def survivors(
    parts: Sequence[Products],
    count: int,
    without: int | None,
    exact: _Exact,
    constant: float = 0.0,
    closer: Sequence[Products] = (),
) -> tuple[Int[np.ndarray, " some"], Float64[np.ndarray, " some"]] | None:
    """The rows of the store that can be among the `count` rows of the largest scores, apart from `without`.

    A score is the sum of those of the parts, and `constant`. The second array holds the upper bounds of the scores;
    the rows are in descending order of these. None if they are too many to be looked at. `exact` gives the scores of
    some rows. `closer` are other parts of the same scores, whose bounds of some rows are closer.
    """
    # Parts after the first one are small beside it, so that their largest bounds tell what it leaves.
    whole, *others = parts
    error, deviation = sum(part.error for part in parts), whole.variance**0.5
    if error > _HOPELESS * deviation:
        return None
    upper, (lowest, highest) = whole.upper(None), (np.iinfo(np.int32).min, np.iinfo(np.int32).max)
    upper[whole.rows :] = lowest
    for part in parts:
        upper[part.hidden] = lowest
    if without is not None:
        upper[without] = lowest
    tops = upper.reshape(-1, BLOCK).max(axis=1)
    wanted = min(max(_CANDIDATES * count, _LEAST_CANDIDATES), len(tops))
    near = _at_least(upper, tops, np.partition(tops, -wanted)[-wanted].item())[: _CANDIDATES * BLOCK]
    near = near[upper[near] > lowest]
    estimates = np.sum([part.bounds(near)[0] for part in closer or parts], axis=0)
    scored = max(2 * count, _LEAST_OF_NARROW if closer or error < _NARROW * deviation else _LEAST_SCORED)
    near = near[np.argsort(-estimates, kind="stable")[:scored]]
    scores = exact(near) if len(near) >= count else np.zeros(0)
    if not len(scores) or not np.isfinite(scores).all():
        return None
    least = float(np.partition(scores, -count)[-count])
    for part in parts:
        far = part.far[upper[part.far] > lowest]
        upper[far] = tops[far // BLOCK] = highest
    most = sum(part.most * part.unit + part.offset for part in others)
    bound = (least - constant - whole.offset - most) / whole.unit
    left = _at_least(upper, tops, max(int(np.floor(bound)), int(lowest) + 1))
    if others:
        left = left[_added(parts, upper, left, rough=True) >= least - constant]
        left = left[_added(parts, upper, left) >= least - constant]
    if len(left) > max(_LEAST_SCORED, _MOST_LEFT * whole.rows):
        return None
    for each in (parts, closer):
        if each:
            bounds = np.sum([part.bounds(left)[1] for part in each], axis=0) + constant
            left, bounds = left[bounds >= least], bounds[bounds >= least]
    order = np.argsort(-bounds, kind="stable")
    return left[order], bounds[order]


def _added(
    parts: Sequence[Products],
    upper: Int32[np.ndarray, " row"],
    rows: Int[np.ndarray, " some"],
    rough: bool = False,
) -> Float64[np.ndarray, " some"]:
    """The sums of the bounds of all parts, of some rows; `upper` are those of the first part."""
    of_first = np.take(upper, rows)
    found = of_first * parts[0].unit
    for part in parts[1:]:
        found += (part.rough if rough else part.upper)(rows) * np.float64(part.unit)
    # The largest stands for any: a row that is far in a part.
    found[of_first == np.iinfo(np.int32).max] = np.inf
    return found + sum(part.offset for part in parts)


def _at_least(
    upper: Int32[np.ndarray, " row"], tops: Int32[np.ndarray, " block"], least: int
) -> Int[np.ndarray, " some"]:
    """The rows whose bounds are at least this, in order; `tops` are the largest bounds of the blocks of rows."""
    blocks = np.flatnonzero(tops >= least)
    if 4 * len(blocks) > len(tops):
        return np.flatnonzero(upper >= least)
    block, place = np.nonzero(upper.reshape(-1, BLOCK)[blocks] >= least)
    return blocks[block] * BLOCK + place
