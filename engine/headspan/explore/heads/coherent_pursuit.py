"""Describe directions by a few texts each: coherent, non-negative orthogonal matching pursuit.

Source: Gentile et al., "From Weights to Concepts" (SITH), CVPR 2026, whose COMP this follows. Each round adds the text
`t` with the highest score `r·t + λ · (mean cosine of t and the texts chosen before)`, where `r` is the residual, among
the texts with `r·t > 0`. The weights of all texts chosen so far are then fitted again by non-negative least squares.
With λ = 0 this is non-negative orthogonal matching pursuit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int64

from headspan.events import Listener, Progress, ignore

# A text that matches the residual by less adds rounding errors only.
_LEAST_MATCH = 1e-9
# Numbers that a batch of directions holds for every text: 64 MB.
_BATCH_NUMBERS = 8 << 20
# The cosines of so many texts with one another are computed once: 134 MB.
_MOST_PAIRS = 4096


class Descriptions(NamedTuple):
    """The texts of each direction, in the order of choice, their weights, and how well they describe it."""

    # Places among the texts; -1 if no further text matches.
    chosen: Int64[np.ndarray, "direction text"]
    weights: Float64[np.ndarray, "direction text"]
    # The cosine of the direction and the weighted sum of its texts; 0 without texts.
    fidelity: Float64[np.ndarray, " direction"]


def coherent_pursuit(
    directions: Float[np.ndarray, "direction joint"],
    texts: Float[np.ndarray, "pool joint"],
    count: int,
    coherence: float,
    on_progress: Listener = ignore,
) -> Descriptions:
    """Describe unit `directions` by `count` of the unit vectors `texts`; `coherence` is λ. Sums are float64."""
    pool = np.asarray(texts, np.float64)
    pairs = pool @ pool.T if len(pool) <= _MOST_PAIRS else None
    step = max(1, _BATCH_NUMBERS // (len(pool) * (count + 3)))
    found = []
    for first in range(0, len(directions), step):
        batch = np.asarray(directions[first : first + step], np.float64)
        found.append(_described(batch, pool, pairs, min(count, len(pool)), coherence))
        on_progress(Progress("directions", first + len(batch), len(directions)))
    chosen, weights, fidelity = zip(*found, strict=True)
    return Descriptions(np.concatenate(chosen), np.concatenate(weights), np.concatenate(fidelity))


def _described(
    directions: Float64[np.ndarray, "direction joint"],
    pool: Float64[np.ndarray, "pool joint"],
    pairs: Float64[np.ndarray, "pool pool"] | None,
    count: int,
    coherence: float,
) -> Descriptions:
    every = np.arange(len(directions))
    matches = directions @ pool.T
    chosen = np.full((len(directions), count), -1, np.int64)
    weights = np.zeros((len(directions), count))
    # The cosines of every chosen text with the whole pool.
    cosines = np.zeros((len(directions), count, len(pool)))
    residual, similar = matches.copy(), np.zeros_like(matches)
    for done in range(count):
        scores = residual + coherence * similar / max(done, 1)
        scores[residual <= _LEAST_MATCH] = -np.inf
        scores[every[:, None], chosen[:, :done]] = -np.inf
        best = scores.argmax(axis=1)
        going = np.isfinite(scores[every, best])
        if not going.any():
            break
        chosen[going, done] = best[going]
        distinct, places = np.unique(best[going], return_inverse=True)
        rows = pairs[distinct] if pairs is not None else pool[distinct] @ pool.T
        cosines[going, done] = rows[places]
        similar += cosines[:, done]
        among = slice(None, done + 1)
        gram = np.take_along_axis(cosines[going][:, among], chosen[going][:, None, among], axis=2)
        fitted = _non_negative(gram, np.take_along_axis(matches[going], chosen[going][:, among], axis=1))
        weights[going, among] = fitted
        residual[going] = matches[going] - np.einsum("dt,dtp->dp", fitted, cosines[going][:, among])
        # A direction that no text matches any longer keeps its texts.
        residual[~going] = -np.inf
    # The residual of a least-squares fit is orthogonal to the sum, so the cosine is the sum's length.
    at_chosen = np.take_along_axis(matches, chosen.clip(0), axis=1)
    fidelity = np.sqrt((weights * at_chosen).sum(axis=1).clip(0, 1))
    return Descriptions(chosen, weights, fidelity)


def _non_negative(
    gram: Float64[np.ndarray, "problem text text"], match: Float64[np.ndarray, "problem text"]
) -> Float64[np.ndarray, "problem text"]:
    """The `w ≥ 0` that minimise `w·G·w − 2 w·m` for every problem."""
    free: Float64[np.ndarray, "problem text"] = np.linalg.solve(gram, match[..., None])[..., 0]
    for problem in np.flatnonzero((free < 0).any(axis=1)):
        free[problem] = _lawson_hanson(gram[problem], match[problem])
    return free


def _lawson_hanson(
    gram: Float64[np.ndarray, "text text"], match: Float64[np.ndarray, " text"]
) -> Float64[np.ndarray, " text"]:
    """Non-negative least squares by active sets (Lawson and Hanson, "Solving Least Squares Problems", 1974)."""
    found, active = np.zeros(len(match)), np.zeros(len(match), bool)
    # Every round lowers the error, and there are few sets; the bound is for rounding errors alone.
    for _ in range(10 * len(match)):
        slope = np.where(active, -np.inf, match - gram @ found)
        if not slope.max() > _LEAST_MATCH:
            break
        active[slope.argmax()] = True
        while True:
            best = np.zeros(len(match))
            best[active] = np.linalg.solve(gram[np.ix_(active, active)], match[active])
            crossing = active & (best <= 0)
            if not crossing.any():
                break
            falling = np.flatnonzero(crossing)
            # Where both are zero, the text stays at zero.
            falls = np.maximum(found[falling] - best[falling], np.finfo(np.float64).tiny)
            steps = found[falling] / falls
            found += steps.min() * (best - found)
            active &= found > 0
            # Rounding may leave the text that reaches zero first just above it, in every round anew.
            active[falling[steps.argmin()]] = False
            found[~active] = 0
        found = best
    return found
