"""The maps from the rows that a direct layer's heads read to their values, with the norm's weight folded in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64

from headspan.model.layers import Norm
from headspan.model.tower import Tower


def value_maps(tower: Tower, layers: Sequence[int]) -> Float64[np.ndarray, "layer head width head_dim"]:
    """`diag(γ) W_V` of every head of `layers`, which are direct: a row `x` has the value `(x − mean) / s · γ W_V + b`.

    `γ` is the weight of the norm before the layer; 1 where there is none. The norm's centring is not folded in.
    """
    return np.stack([_value_map(tower, layer) for layer in layers])


def _value_map(tower: Tower, layer: int) -> Float64[np.ndarray, "head width head_dim"]:
    norm: Norm | None
    if tower.attention_pool is not None:
        pool = tower.attention_pool
        # Keys and values stand side by side.
        norm, weight = pool.norm, pool.key_value.weight[pool.out_proj.weight.shape[1] :]
    else:
        block = tower.blocks[layer]
        # Queries, keys and values stand side by side.
        norm, weight = block.norm_attention, block.qkv.weight[2 * block.out_proj.weight.shape[1] :]
    rows = _double(weight).reshape(tower.heads, -1, weight.shape[1])
    scaled = rows if norm is None else rows * _double(norm.weight)
    return scaled.swapaxes(1, 2)


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
