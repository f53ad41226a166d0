"""What the pooled row received, to the numbers that the store keeps: embedding, norm, heads, patches, MLPs.

Everything is computed in float32 and moments see it so; 16 bits are the last step. A number too large
for 16 bits is not clipped: the image is set aside with that reason.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headspan.emit.transfer import Transfer, to_host
from headspan.model.tower import PooledRow, Tower


@dataclass(frozen=True, slots=True)
class Contributions:
    """A batch as the store's arrays take it, on its way to the host, and the numbers that moments need."""

    transfer: Transfer
    heads: Tensor
    norm: Tensor
    # False for images of which a number is not finite.
    finite: Tensor

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The store's arrays, by name; waits for a GPU."""
        return {name: array for name, array in self.transfer.arrays().items() if name != "finite"}

    @property
    def good(self) -> np.ndarray:
        """`finite` on the host; waits for a GPU."""
        return self.transfer.arrays()["finite"]


def contributions(row: PooledRow, tower: Tower) -> Contributions:
    """The store's numbers for a batch.

    `embedding` `[batch, joint]` is the model's own, not normalised; `norm` `[batch, 3]` its final norm's
    mean `μ`, its `s` and `‖embedding‖`; `mlps` are in `own` form over `s`, beside their means.
    """
    weight, bias, _ = tower.norm_after
    mean = row.state.mean(dim=1, keepdim=True)
    std = row.std[:, None]
    embedding = ((row.state - mean) / std * weight + bias) @ tower.projection
    norm = torch.cat([mean, std, embedding.norm(dim=1, keepdim=True)], dim=1)
    tensors = {"embedding": embedding, "norm": norm, "heads": row.heads.half()}
    if row.patches is not None:
        tensors["patches"] = row.patches.half()
    if row.terms is not None:
        means = row.terms.mean(dim=2)
        centred = (row.terms - means[..., None]) / std[..., None]
        tensors["mlps"] = ((centred * weight) @ tower.projection).half()
        tensors["mlp_means"] = means
    finite = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    for tensor in tensors.values():
        # The largest magnitude is infinite or NaN where any number is, and takes one reading.
        finite &= torch.linalg.vector_norm(tensor.flatten(1), ord=torch.inf, dim=1).isfinite()
    return Contributions(to_host({**tensors, "finite": finite}, norm.device), row.heads, norm, finite)
