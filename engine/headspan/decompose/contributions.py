"""What the pooled row received, to the numbers that the store keeps: embedding, norm, heads, patches, MLPs.

Everything is computed in float32 and moments see it so; 16 bits are the last step. A number too large
for 16 bits is not clipped: the image is set aside with that reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headspan.decompose.transfer import Transfer, to_host
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


def contributions(row: PooledRow, tower: Tower, carried: Sequence[int] = ()) -> Contributions:
    """The store's numbers for a batch; `carried` are the layers that the pass carried through the pooling.

    `embedding` `[batch, joint]` is the model's own, not normalised; `norm` `[batch, 3]` its final norm's
    mean `μ` and its `s` (0 and 1 where the model has none) and `‖embedding‖`; `mlps` and `through_pool` are in
    `per_term` form over `s`, the first beside their means.
    """
    std = row.std[:, None]
    mean = _mean(row.state, tower)
    embedding = _to_joint((row.state - mean) / std, tower) + _shift(tower)
    norm = torch.cat([mean, std, embedding.norm(dim=1, keepdim=True)], dim=1)
    tensors = {"embedding": embedding, "norm": norm, "heads": row.heads.half()}
    if row.patches is not None:
        tensors["patches"] = row.patches.half()
    if row.terms is not None:
        means = _mean(row.terms, tower)
        tensors["mlps"] = _to_joint((row.terms - means) / std[..., None], tower).half()
        tensors["mlp_means"] = means[..., 0]
    if row.carried is not None:
        tensors["through_pool"] = _through_pool(row.carried, std, tower, carried).half()
    finite = torch.ones(len(embedding), dtype=torch.bool, device=embedding.device)
    for tensor in tensors.values():
        # The largest magnitude is infinite or NaN where any number is, and takes one reading.
        finite &= torch.linalg.vector_norm(tensor.flatten(1), ord=torch.inf, dim=1).isfinite()
    return Contributions(to_host({**tensors, "finite": finite}, norm.device), row.heads, norm, finite)


def _through_pool(head_outputs: Tensor, std: Tensor, tower: Tower, layers: Sequence[int]) -> Tensor:
    """`[batch, layer, head, joint]`: what the pooling layer's heads took from each head of `layers`.

    Pooling head p took `Σ_n α_n (c_n − mean c_n) / s_n · diag(γ) W_V[p] W_O[p]` of a head's output c_n at row n;
    `head_outputs` hold `Σ_n α_n / s_n` of the head's numbers, and the rest is a fixed map.
    """
    pool = tower.pool
    assert pool is not None, "only attention pooling carries"
    value = pool.key_value.weight[len(pool.query) :].float() * pool.norm.weight.float()
    by_pool_head = value.unflatten(0, (pool.heads, -1))
    found = []
    for place, layer in enumerate(layers):
        output = tower.blocks[layer].output.weight.float().T.unflatten(0, (tower.trunk_heads, -1))
        outputs = output - output.mean(dim=-1, keepdim=True)
        through = torch.einsum("hkw,pvw->hkpv", outputs, by_pool_head)
        pooled = torch.einsum("bhpk,hkpv->bhpv", head_outputs[:, place], through).flatten(2)
        rows = pooled @ pool.output.weight.float().T
        found.append(_to_joint((rows - _mean(rows, tower)) / std[..., None], tower))
    return torch.stack(found, dim=1)


def _mean(rows: Tensor, tower: Tower) -> Tensor:
    """The rows' means over the width, zeros where no final norm takes them away."""
    means = rows.mean(dim=-1, keepdim=True)
    return means if tower.norm_after is not None else torch.zeros_like(means)


def _to_joint(rows: Tensor, tower: Tower) -> Tensor:
    return (rows if tower.norm_after is None else rows * tower.norm_after.weight) @ tower.projection


def _shift(tower: Tower) -> Tensor:
    bias = tower.projection_bias
    return bias if tower.norm_after is None else tower.norm_after.bias @ tower.projection + bias
