"""A linear probe: multinomial logistic regression on vectors, fitted by L-BFGS in float64.

Vectors are centred and divided by one number, so that their mean variance is 1, before they are penalised. Otherwise
the penalty would weigh more on vectors that have lost some of their length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch.nn import functional

# The weight of the data against the squared weights, as scikit-learn's C, and the most iterations.
C, ITERATIONS = 1.0, 300


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A fitted probe."""

    centre: Float64[np.ndarray, " width"]
    scale: float
    weights: Float64[np.ndarray, "width class"]
    bias: Float64[np.ndarray, " class"]

    def named(self, vectors: Float32[np.ndarray, "vector width"]) -> Int64[np.ndarray, " vector"]:
        """The number of the class named for each vector."""
        logits = (vectors - self.centre) / self.scale @ self.weights + self.bias
        return np.asarray(logits.argmax(axis=1), np.int64)


def fit_probe(
    vectors: Float32[np.ndarray, "vector width"], truths: Int64[np.ndarray, " vector"], classes: int
) -> Probe:
    """The probe with the least `Σ cross-entropy + ‖weights‖² / (2 C)`; classes without a vector are never named."""
    centre = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors - centre
    spread = float(np.sqrt(np.mean(np.square(centred))))
    # Vectors that are all equal tell nothing, and are divided by 1.
    scale = spread if spread > 0 else 1.0
    given, wanted = torch.from_numpy(centred / scale), torch.from_numpy(truths)
    weights = torch.zeros(given.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights, bias], max_iter=ITERATIONS, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        own = functional.cross_entropy(given @ weights + bias, wanted)
        own = own + weights.square().sum() / (2 * C * len(given))
        own.backward()
        return own

    optimiser.step(loss)
    found = bias.detach().numpy().copy()
    # The bias of such a class only ever falls, and does so without end.
    found[np.bincount(truths, minlength=classes) == 0] = -np.inf
    return Probe(centre, scale, weights.detach().numpy().copy(), found)
