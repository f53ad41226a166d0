"""Accumulate count, sum and uncentred Gram matrix of every head's coordinates while streaming.

TEXTSPAN needs nothing else, whatever the number of images. Moments can be added over batches, units and machines.
They are accumulated in float64 from the float32 numbers, before anything is rounded for storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from headspan.decompose.formula import EXTRA_COORDINATES
from headspan_kernels import ops


@dataclass(slots=True)
class Moments:
    """Moments of the normalised coordinates `[Σ α v / s, 1/s, μ/s, 1] / ‖embedding‖` of the stored layers' heads."""

    count: Int64[Tensor, ""]
    total: Float64[Tensor, "layer head coordinate"]
    gram: Float64[Tensor, "layer head coordinate coordinate"]

    @classmethod
    def zeros(cls, layers: int, heads: int, head_dim: int, device: torch.device) -> Moments:
        """Moments of zero images."""
        size = head_dim + EXTRA_COORDINATES
        return cls(
            count=torch.zeros((), dtype=torch.int64, device=device),
            total=torch.zeros(layers, heads, size, dtype=torch.float64, device=device),
            gram=torch.zeros(layers, heads, size, size, dtype=torch.float64, device=device),
        )

    def add(self, heads: Tensor, norm: Tensor, good: Tensor | None = None) -> None:
        """Add a batch: `heads` `[batch, layer, head, head_dim]` and `norm` `[batch, 3]`, float32.

        Images that are not `good` are left out. Nothing waits for the device to learn how many these are.
        """
        mean, std, length = norm.double().unbind(dim=1)
        mean_and_bias = torch.stack([1 / std, mean / std, torch.ones_like(std)], dim=1) / length[:, None]
        scale = 1 / (std * length)
        if good is None:
            good = torch.ones_like(scale, dtype=torch.bool)
        ops(heads.device).add_moments(heads, torch.where(good, scale, 0), mean_and_bias, self.total, self.gram)
        self.count += good.sum()

    def arrays(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Count, sum and Gram matrix as NumPy arrays."""
        return int(self.count), self.total.cpu().numpy(), self.gram.cpu().numpy()
