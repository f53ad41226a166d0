"""Compute the numbers of the store's arrays for a batch from what the pooled row received.

Everything is computed in float32, and moments are accumulated from float32. Rounding to 16 bits is the last step. A
number that is too large for 16 bits is not clipped; its image is reported as bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headspan.decompose.transfer import Transfer, to_host
from headspan.model.joint import embedding, means, to_joint
from headspan.model.tower import PooledRow, Tower


@dataclass(frozen=True, slots=True)
class Contributions:
    """A batch's numbers for the store's arrays, which are being copied to the host, and those that moments need."""

    transfer: Transfer
    # Head outputs `[batch, layer, head, head_dim]` and `norm` `[batch, 3]`, float32, on the device.
    heads: Tensor
    norm: Tensor
    # `[batch, joint]`, float32, not normalised, on the device.
    embedding: Tensor
    # False for images that have a number that is not finite.
    finite: Tensor

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The store's arrays by name; waits until the GPU has computed and copied them."""
        return {name: array for name, array in self.transfer.arrays().items() if name != "finite"}

    @property
    def good(self) -> np.ndarray:
        """`finite` on the host; waits until the GPU has computed and copied it."""
        return self.transfer.arrays()["finite"]


def contributions(row: PooledRow, tower: Tower, through_pool: Sequence[int] = ()) -> Contributions:
    """The store's numbers for a batch; `through_pool` lists the earlier layers that `Tower.forward` was called with.

    `embedding` `[batch, joint]` is the model's own, not normalised. `norm` `[batch, 3]` holds the final norm's mean `μ`
    and its `s` (0 and 1 for a model without a final norm), and `‖embedding‖`. `mlps` and `through_pool` are
    contributions in the `per_term` convention; `mlp_means` holds the means of the MLPs over the width.
    """
    std = row.std[:, None]
    found = embedding(row.state, row.std, tower)
    norm = torch.cat([means(row.state, tower), std, found.norm(dim=1, keepdim=True)], dim=1)
    tensors = {"embedding": found, "norm": norm, "heads": row.heads.half()}
    if row.patches is not None:
        tensors["patches"] = row.patches.half()
    if row.terms is not None:
        mlp_means = means(row.terms, tower)
        tensors["mlps"] = to_joint((row.terms - mlp_means) / std[..., None], tower).half()
        tensors["mlp_means"] = mlp_means[..., 0]
    if row.through_pool is not None:
        tensors["through_pool"] = _through_pool(row.through_pool, std, tower, through_pool).half()
    finite = torch.ones(len(found), dtype=torch.bool, device=found.device)
    for tensor in tensors.values():
        # The largest magnitude is infinite or NaN if any number is, and one pass over the memory finds it.
        finite &= torch.linalg.vector_norm(tensor.flatten(1), ord=torch.inf, dim=1).isfinite()
    return Contributions(to_host({**tensors, "finite": finite}, norm.device), row.heads, norm, found, finite)


def _through_pool(head_outputs: Tensor, std: Tensor, tower: Tower, layers: Sequence[int]) -> Tensor:
    """`[batch, layer, head, joint]`: what the pooling layer's heads took from each head of `layers`.

    Pooling head p takes `Σ_n α_n (c_n − mean c_n) / s_n · diag(γ) W_V[p] W_O[p]` from a head whose output at row n is
    c_n. `head_outputs` holds the sums of the head's numbers weighted by `α_n / s_n`; the rest is a fixed map.
    """
    pool = tower.attention_pool
    assert pool is not None, "only a tower with attention pooling follows heads through it"
    value = pool.key_value.weight[len(pool.query) :].float() * pool.norm.weight.float()
    by_pool_head = value.unflatten(0, (pool.heads, -1))
    contributed = []
    for place, layer in enumerate(layers):
        output = tower.blocks[layer].out_proj.weight.float().T.unflatten(0, (tower.trunk_heads, -1))
        outputs = output - output.mean(dim=-1, keepdim=True)
        through = torch.einsum("hkw,pvw->hkpv", outputs, by_pool_head)
        pooled = torch.einsum("bhpk,hkpv->bhpv", head_outputs[:, place], through).flatten(2)
        rows = pooled @ pool.out_proj.weight.float().T
        contributed.append(to_joint((rows - means(rows, tower)) / std[..., None], tower))
    return torch.stack(contributed, dim=1)
