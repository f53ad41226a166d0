"""SpLiCE: vectors of images as few non-negative multiples of texts' vectors, a baseline of naming without training.

Source: Bhalla, Oesterling, Srinivas, Calmon, Lakkaraju, "Interpreting CLIP with Sparse Linear Concept Embeddings"
(NeurIPS 2024). The mean of the images is taken from images and that of the texts from texts, both are made unit, and

    min over w ≥ 0 of ‖x − wᵀ C‖² + λ Σ w

is solved for all images of a batch at once by FISTA (Beck and Teboulle 2009), whose step is 1 over the largest
eigenvalue of C Cᵀ. The published code solves it image by image with scikit-learn or by ADMM.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from headspan.features.pairs.units import units

# λ, in the units of the published code.
PENALTY = 0.25
_STEPS, _AT_ONCE = 500, 1024
# A step that changes no weight by more than this is the last one.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """Texts of images, and how well they reconstruct the images."""

    weights: Float32[np.ndarray, "image text"]
    # Mean number of texts with a weight.
    l0: float
    # Mean cosine of an image with what its texts give, as published: with the mean of images added to the unit vector
    # of the texts; and before that, of the centred image with the texts alone.
    cosine: float
    centred_cosine: float


def splice(
    images: Float[np.ndarray, "image joint"],
    texts: Float[np.ndarray, "text joint"],
    penalty: float = PENALTY,
    image_mean: Float[np.ndarray, " joint"] | None = None,
) -> Splice:
    """Decompose images into texts. `image_mean` is that of a larger set of images; by default that of `images`."""
    unit = units(images)
    mean = unit.mean(axis=0) if image_mean is None else image_mean
    centred = units(unit - mean)
    concepts = units(units(texts) - units(texts).mean(axis=0))
    weights = nonnegative_lasso(centred, concepts, penalty / 2)
    rebuilt = weights @ concepts
    cosine, centred_cosine = _cosine(units(rebuilt) + mean, unit), _cosine(rebuilt, centred)
    return Splice(weights, float((weights > 0).sum(axis=1).mean()), cosine, centred_cosine)


def nonnegative_lasso(
    vectors: Float32[np.ndarray, "vector width"],
    atoms: Float32[np.ndarray, "atom width"],
    penalty: float,
    steps: int = _STEPS,
) -> Float32[np.ndarray, "vector atom"]:
    """Weights w ≥ 0 that minimise ‖x − wᵀ atoms‖² / 2 + penalty · Σ w, for each vector x."""
    # The eigenvalues of atoms atomsᵀ other than 0 are those of the smaller atomsᵀ atoms.
    gram = atoms.T @ atoms if len(atoms) > atoms.shape[1] else atoms @ atoms.T
    step = np.float32(1 / max(float(np.linalg.eigvalsh(gram.astype(np.float64))[-1]), 1e-30))
    found = np.empty((len(vectors), len(atoms)), np.float32)
    for first in range(0, len(vectors), _AT_ONCE):
        some = vectors[first : first + _AT_ONCE]
        fixed = some @ atoms.T - np.float32(penalty)
        weights = np.zeros_like(fixed)
        ahead, inertia = weights, 1.0
        for _ in range(steps):
            new = np.maximum(ahead + step * (fixed - (ahead @ atoms) @ atoms.T), 0)
            change = new - weights
            # Restarted where inertia leads away from the minimum (O'Donoghue and Candès 2015).
            restart = float(((ahead - new) * change).sum()) > 0
            following = 1.0 if restart else (1 + (1 + 4 * inertia**2) ** 0.5) / 2
            ahead = new if restart else new + np.float32((inertia - 1) / following) * change
            weights, inertia = new, following
            if float(np.abs(change).max(initial=0)) < _TOLERANCE:
                break
        found[first : first + _AT_ONCE] = weights
    return found


def _cosine(one: Float[np.ndarray, "image joint"], other: Float[np.ndarray, "image joint"]) -> float:
    """The mean cosine of rows; that of a row of length 0 is 0."""
    return float((units(one) * units(other)).sum(axis=1).mean())
