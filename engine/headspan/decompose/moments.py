"""Accumulate count, sum and uncentred Gram matrix of every head's coordinates, and of embeddings, while streaming.

TEXTSPAN and the heads' magnitudes need nothing else, whatever the number of images. Moments can be added over batches,
units and machines. They are accumulated in float64 from the float32 numbers, before anything is rounded for storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from headspan.decompose.formula import EXTRA_COORDINATES
from headspan_kernels import ops


@dataclass(slots=True)
class Moments:
    """Moments of the normalised coordinates `[Σ α v / s, 1/s, μ/s, 1] / ‖embedding‖` of the stored layers' heads.

    `embedding_total` and `embedding_gram` are the sum and the uncentred Gram matrix of the unit embeddings; None if
    these are not accumulated.
    """

    count: Int64[Tensor, ""]
    total: Float64[Tensor, "layer head coordinate"]
    gram: Float64[Tensor, "layer head coordinate coordinate"]
    embedding_total: Float64[Tensor, " joint"] | None = None
    embedding_gram: Float64[Tensor, "joint joint"] | None = None

    @classmethod
    def zeros(cls, layers: int, heads: int, head_dim: int, device: torch.device, joint: int | None = None) -> Moments:
        """Moments of zero images; those of embeddings, of `joint` numbers each, only if `joint` is given."""
        size = head_dim + EXTRA_COORDINATES
        return cls(
            count=torch.zeros((), dtype=torch.int64, device=device),
            total=torch.zeros(layers, heads, size, dtype=torch.float64, device=device),
            gram=torch.zeros(layers, heads, size, size, dtype=torch.float64, device=device),
            embedding_total=None if joint is None else torch.zeros(joint, dtype=torch.float64, device=device),
            embedding_gram=None if joint is None else torch.zeros(joint, joint, dtype=torch.float64, device=device),
        )

    def add(
        self,
        heads: Tensor,
        norm: Tensor,
        good: Tensor | None = None,
        embedding: Float32[Tensor, "batch joint"] | None = None,
    ) -> None:
        """Add a batch: `heads` `[batch, layer, head, head_dim]` and `norm` `[batch, 3]`, float32.

        Images that are not `good` are left out. Nothing waits for the device to learn how many these are. `embedding`,
        not normalised, is ignored if the moments of embeddings are not accumulated.
        """
        mean, std, length = norm.double().unbind(dim=1)
        mean_and_bias = torch.stack([1 / std, mean / std, torch.ones_like(std)], dim=1) / length[:, None]
        scale = 1 / (std * length)
        if good is None:
            good = torch.ones_like(scale, dtype=torch.bool)
        ops(heads.device).add_moments(heads, torch.where(good, scale, 0), mean_and_bias, self.total, self.gram)
        if self.embedding_total is not None and self.embedding_gram is not None:
            assert embedding is not None, "moments of embeddings need the embeddings"
            unit = torch.where(good[:, None], embedding.double() / length[:, None], 0)
            self.embedding_total += unit.sum(dim=0)
            self.embedding_gram.addmm_(unit.T, unit)
        self.count += good.sum()

    def arrays(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Count, sum and Gram matrix of the heads' coordinates as NumPy arrays."""
        return int(self.count), self.total.cpu().numpy(), self.gram.cpu().numpy()

    def embedding_arrays(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Sum and Gram matrix of the unit embeddings as NumPy arrays; None if they are not accumulated."""
        if self.embedding_total is None or self.embedding_gram is None:
            return None
        return self.embedding_total.cpu().numpy(), self.embedding_gram.cpu().numpy()
