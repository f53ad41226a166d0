"""How stable features are over seeds: the directions of dictionaries matched one to one by their cosines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float32, Float64

from headspan.errors import SettingsError
from headspan.features.pairs.units import units

# A matched pair of directions with at least this cosine is one feature that both dictionaries found (Paulo and Belrose,
# arXiv 2501.16615, call it shared from 0.7 on).
SHARED = 0.7


@dataclass(frozen=True, slots=True, eq=False)
class Stability:
    """Matched cosines of two or more dictionaries."""

    # The mean over the other dictionaries of the cosine with the match, for each feature of each dictionary.
    cosines: tuple[Float64[np.ndarray, " feature"], ...]
    # Mean matched cosine over all pairs of dictionaries, and the share of features whose match has at least 0.7.
    mean: float
    shared: float
    # The mean matched cosine of as many random directions of the same widths.
    random: float


def stability(directions: Sequence[Float[np.ndarray, "feature width"]], seed: int = 0) -> Stability:
    """Match every two dictionaries by the assignment of features with the largest sum of cosines (Hungarian method).

    Dictionaries of different sizes leave features of the larger one without a match, which count as a cosine of 0.
    Raises SettingsError for fewer than two dictionaries, or for different widths.
    """
    if len(directions) < 2:
        raise SettingsError(f"stability compares at least 2 dictionaries, but {len(directions)} was given; name two")
    widths = [each.shape[1] for each in directions]
    if len(set(widths)) > 1:
        raise SettingsError(
            f"stability compares dictionaries of one space, but their vectors have {', '.join(map(str, widths))} "
            "numbers; choose dictionaries of one space"
        )
    unit = [units(each) for each in directions]
    totals = [np.zeros(len(each)) for each in unit]
    means, shared = [], []
    for one, other in combinations(range(len(unit)), 2):
        mine, theirs = matched_cosines(unit[one], unit[other])
        totals[one] += mine
        totals[other] += theirs
        larger = mine if len(mine) >= len(theirs) else theirs
        means.append(larger.mean())
        shared.append((larger >= SHARED).mean())
    random = np.random.default_rng(seed)
    drawn = [units(random.standard_normal(each.shape)) for each in unit[:2]]
    chance = max(matched_cosines(*drawn), key=len).mean()
    others = len(unit) - 1
    return Stability(
        tuple(total / others for total in totals), float(np.mean(means)), float(np.mean(shared)), float(chance)
    )


def matched_cosines(
    one: Float32[np.ndarray, "feature width"], other: Float32[np.ndarray, "match width"]
) -> tuple[Float64[np.ndarray, " feature"], Float64[np.ndarray, " match"]]:
    """The cosine of each direction with its match, for both sides; 0 without a match. Directions have unit length."""
    # Imported here, since scores are read without it.
    from scipy.optimize import linear_sum_assignment

    cosines = one @ other.T
    rows, columns = linear_sum_assignment(cosines, maximize=True)
    mine, theirs = np.zeros(len(one)), np.zeros(len(other))
    mine[rows] = theirs[columns] = cosines[rows, columns]
    return mine, theirs
