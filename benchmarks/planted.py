"""Pairs of vectors that are made of known atoms: some of both sides, some of images alone, some of texts alone.

A pair has a few shared atoms, with the same strengths on both sides, and each side has a few atoms of its own. Each
side also has an offset of its own, as images and texts of CLIP do, and noise. Vectors have unit length. The number of a
pair and the seed decide it, so that any pairs can be drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64
from scipy.optimize import linear_sum_assignment

SHARED, IMAGE_ONLY, TEXT_ONLY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Planted:
    """A drawing of atoms, and the pairs that are made of them."""

    width: int = 64
    shared: int = 72
    # Atoms of images alone, and as many of texts alone.
    own: int = 36
    # Atoms of each kind in a vector.
    shared_active: int = 5
    own_active: int = 2
    offset: float = 1.0
    noise: float = 0.03
    seed: int = 0

    def kinds(self) -> Int64[np.ndarray, " atom"]:
        """SHARED, IMAGE_ONLY or TEXT_ONLY."""
        return np.repeat([SHARED, IMAGE_ONLY, TEXT_ONLY], [self.shared, self.own, self.own])

    def atoms(self) -> Float32[np.ndarray, "atom width"]:
        """Random unit directions, more than the width."""
        return unit(np.random.default_rng(self.seed).standard_normal((self.shared + 2 * self.own, self.width)))

    def pairs(
        self, count: int, draw: int = 0
    ) -> tuple[Float32[np.ndarray, "pair width"], Float32[np.ndarray, "pair width"]]:
        """Vectors of images and of texts. Another `draw` gives other pairs of the same atoms."""
        rng = np.random.default_rng([self.seed, 1, draw])
        offsets = np.random.default_rng([self.seed, 2]).standard_normal((2, self.width))
        common = self._codes(rng, count, self.shared, self.shared_active)
        nothing = np.zeros((count, self.own))
        sides = []
        for side in range(2):
            own = self._codes(rng, count, self.own, self.own_active)
            codes = np.hstack([common, nothing, own] if side else [common, own, nothing])
            noise = self.noise * rng.standard_normal((count, self.width))
            sides.append(unit(codes @ self.atoms() + self.offset * unit(offsets[side : side + 1]) + noise))
        return sides[0], sides[1]

    @staticmethod
    def _codes(rng: np.random.Generator, count: int, atoms: int, active: int) -> Float[np.ndarray, "pair atom"]:
        """Non-negative codes with as many active atoms in each row."""
        which = rng.random((count, atoms)).argsort(axis=1)[:, :active]
        codes = np.zeros((count, atoms))
        np.put_along_axis(codes, which, rng.uniform(0.5, 1.5, which.shape), axis=1)
        return codes


def matched(
    atoms: Float[np.ndarray, "atom width"], directions: Float[np.ndarray, "feature width"]
) -> tuple[Int64[np.ndarray, " atom"], Float[np.ndarray, " atom"]]:
    """A feature for each atom, none for two, with the largest sum of cosines (Hungarian method); and these cosines."""
    cosines = unit(atoms) @ unit(directions).T
    atom, feature = linear_sum_assignment(-cosines)
    order = np.argsort(atom)
    found: np.ndarray = cosines[atom, feature][order]
    return np.asarray(feature)[order], found


def unit(vectors: Float[np.ndarray, "vector width"]) -> Float32[np.ndarray, "vector width"]:
    """Vectors of length 1; those of length 0 stay 0."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0), np.float32)


def auc(low: Float[np.ndarray, " number"], high: Float[np.ndarray, " number"]) -> float:
    """The chance that a number of `high` is above one of `low`; equal numbers count as a half."""
    difference = high[:, None] - low[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)
