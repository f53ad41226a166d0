"""Draw sets of features to compare a class with: as many random features, of equal energy.

The energy of a feature is the mean square of its codes over the vectors that are changed. To remove features changes a
vector by as much as their codes are large, so that a set of less energy would be a control of nothing. Sets are drawn
outside the class. Where no set outside it has its energy, sets are drawn from all features, and `shared` says which
part of the class they contain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from headspan.features.scores.result import FeatureScores

# How many sets are drawn, and how far the energy of a set may be from that of the class, as a share of it.
DRAWS, TOLERANCE = 10, 0.02
# Pairs of features that an exchange is chosen from, exchanges after which a set starts again, and starts.
_PAIRS, _EXCHANGES, _STARTS = 256, 2000, 3
# Energy below this share of all features' counts as none.
_NONE = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class MatchedDraws:
    """Random sets of features, all as large as the class, and their energies."""

    members: Bool[np.ndarray, "draw feature"]
    # The energy of each set as a share of the class's; NaN if that is 0.
    energies: Float64[np.ndarray, " draw"]
    # The mean share of the class that a set contains: 0 where sets are drawn outside it.
    shared: float
    # What limits the comparison, in sentences without a full stop.
    remarks: tuple[str, ...] = ()

    @property
    def limits(self) -> tuple[str, ...]:
        """The remarks, and how much of the class the sets hold."""
        held = (f"random sets hold {100 * self.shared:.0f} % of the class on average",) if self.shared else ()
        return self.remarks + held


def controls_of(
    classes: Mapping[str, Bool[np.ndarray, " feature"]],
    energies: Float64[np.ndarray, " feature"],
    scores: FeatureScores,
    draws: int,
    seed: int,
    tolerance: float,
) -> tuple[dict[str, MatchedDraws], list[str]]:
    """Random sets for each class of features, of those that are active at all; and what limits the comparisons."""
    alive = np.asarray(scores.active > 0)
    found = {name: matched_features(own, energies, alive, draws, seed, tolerance) for name, own in classes.items()}
    return found, [f"{name}: {remark}" for name, control in found.items() for remark in control.limits]


def matched_features(
    members: Bool[np.ndarray, " feature"],
    energies: Float64[np.ndarray, " feature"],
    among: Bool[np.ndarray, " feature"],
    draws: int = DRAWS,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> MatchedDraws:
    """Draw sets of as many features of `among` as `members` has, whose energies sum to the same within `tolerance`.

    Draws depend on the arguments alone. No set is given, and a remark says so, if none of that energy is found.
    """
    size, target = int(members.sum()), float(energies[members].sum())
    random = np.random.default_rng([seed, size])
    remarks = []
    for pool, where in ((among & ~members, "outside the class"), (among | members, "among all features")):
        places = np.flatnonzero(pool)
        if not _possible(energies[places], size, target, tolerance):
            continue
        sets = [each for _ in range(draws) if (each := _drawn(energies, places, size, target, tolerance, random)).any()]
        if len(sets) < draws:
            continue
        if where != "outside the class":
            remarks.append("no set outside the class has its energy, so random sets share features with it")
        found = np.array(sets, bool).reshape(len(sets), len(members))
        own = found @ energies
        relative = own / target if target > 0 else np.full(len(sets), np.nan)
        shared = float((found & members).sum() / (size * len(sets))) if size and sets else 0.0
        return MatchedDraws(found, relative, shared, tuple(remarks))
    return MatchedDraws(
        np.zeros((0, len(members)), bool),
        np.zeros(0),
        0.0,
        (f"no {size:,} random features have the energy of the class, so it has no control",),
    )


def _possible(energies: Float64[np.ndarray, " some"], size: int, target: float, tolerance: float) -> bool:
    """Whether the target lies between the energies of the smallest and of the largest features."""
    if size > len(energies):
        return False
    ordered = np.sort(energies)
    least, most = float(ordered[:size].sum()), float(ordered[len(ordered) - size :].sum())
    return least <= (1 + tolerance) * target + _NONE * energies.sum() and most >= (1 - tolerance) * target


def _drawn(
    energies: Float64[np.ndarray, " feature"],
    places: Int64[np.ndarray, " some"],
    size: int,
    target: float,
    tolerance: float,
    random: np.random.Generator,
) -> Bool[np.ndarray, " feature"]:
    """A random set whose features are exchanged at random until its energy is right; empty if that fails."""
    found = np.zeros(len(energies), bool)
    allowed = max(tolerance * target, _NONE * float(energies.sum()))
    for _ in range(_STARTS):
        order = random.permutation(places)
        inside, outside = order[:size].copy(), order[size:].copy()
        away = float(energies[inside].sum()) - target
        for _ in range(_EXCHANGES):
            if abs(away) <= allowed:
                found[inside] = True
                return found
            if not len(outside):
                break
            ins, outs = random.integers(size, size=_PAIRS), random.integers(len(outside), size=_PAIRS)
            steps = energies[outside[outs]] - energies[inside[ins]]
            better = np.flatnonzero(np.abs(away + steps) < abs(away))
            # The first one that comes nearer, and not the one that comes nearest, so that sets stay random.
            one, other = (ins[better[0]], outs[better[0]]) if len(better) else _nearest(energies, inside, outside, away)
            step = float(energies[outside[other]] - energies[inside[one]])
            if not abs(away + step) < abs(away):
                break
            inside[one], outside[other] = outside[other], inside[one]
            away += step
    return found


def _nearest(
    energies: Float64[np.ndarray, " feature"],
    inside: Int64[np.ndarray, " some"],
    outside: Int64[np.ndarray, " other"],
    away: float,
) -> tuple[int, int]:
    """The places of the two features whose exchange brings the energy of `inside` nearest to its target."""
    order = np.argsort(energies[outside], kind="stable")
    ordered = energies[outside][order]
    wanted = energies[inside] - away
    right = np.searchsorted(ordered, wanted).clip(0, len(ordered) - 1)
    left = np.maximum(right - 1, 0)
    picks = np.where(np.abs(ordered[left] - wanted) < np.abs(ordered[right] - wanted), left, right)
    one = int(np.argmin(np.abs(ordered[picks] - wanted)))
    return one, int(order[picks[one]])
