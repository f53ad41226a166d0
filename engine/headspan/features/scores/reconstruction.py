"""How well codes reconstruct the vectors that they are of: FVU, R², cosine and L0, from sums over blocks."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from headspan.features.scores.codes import Codes


class ReconstructionSums:
    """Sums over the vectors of one side and their reconstructions."""

    def __init__(self, width: int) -> None:
        self._count, self._decoded, self._codes = 0, 0, 0
        self._sum = np.zeros(width)
        self._square, self._error, self._cosine = 0.0, 0.0, 0.0

    def add(
        self,
        codes: Codes,
        vectors: Float[np.ndarray, "vector width"],
        decoded: Float[np.ndarray, "vector width"] | None,
    ) -> None:
        """Add vectors with their codes and what these decode to; None where the learner has no decoder."""
        self._count += len(vectors)
        self._codes += codes.nnz
        if decoded is None:
            return
        vectors = vectors.astype(np.float64)
        self._decoded += len(vectors)
        self._sum += vectors.sum(axis=0)
        square = np.einsum("nw,nw->n", vectors, vectors)
        self._square += float(square.sum())
        self._error += float(((vectors - decoded) ** 2).sum())
        lengths = np.sqrt(square * np.einsum("nw,nw->n", decoded, decoded, dtype=np.float64))
        # A reconstruction of length 0 has no direction; it counts as orthogonal.
        dots = np.einsum("nw,nw->n", vectors, decoded)
        self._cosine += float(np.divide(dots, lengths, out=np.zeros(len(dots)), where=lengths > 0).sum())

    def figures(self, side: str) -> dict[str, float]:
        """`SIDE_l0`, and for learners that decode `SIDE_fvu`, `SIDE_r2` and `SIDE_cosine`.

        FVU is the sum of squared errors divided by that of the distances from the vectors' mean; R² is 1 − FVU.
        """
        found = {f"{side}_l0": self._codes / self._count if self._count else float("nan")}
        if self._decoded:
            variance = self._square - float((self._sum**2).sum()) / self._decoded
            fvu = self._error / variance if variance > 0 else float("nan")
            found |= {f"{side}_fvu": fvu, f"{side}_r2": 1 - fvu, f"{side}_cosine": self._cosine / self._decoded}
        return found
