"""Compute the fixed matrices of the decomposition from a tower's weights, once and in float64.

A head's contribution to the embedding is its `head_dim` numbers times `W_O · diag(γ) · P`. This module computes the
product, so that nothing afterwards needs the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headspan.decompose.formula import Folded
from headspan.model.tower import Tower


def fold(tower: Tower, layers: Sequence[int]) -> Folded:
    """Fold the output projections of `layers`, which are direct, with the final norm and the projection of `tower`."""
    projection = _double(tower.projection)
    gamma_projection, shift = projection, _double(tower.projection_bias)
    if tower.ln_post is not None:
        gamma_projection = _double(tower.ln_post.weight)[:, None] * projection
        shift = shift + _double(tower.ln_post.bias) @ projection
    # Without a final norm nothing is centred, so all means count as zero.
    centred = float(tower.ln_post is not None)
    outputs: dict[int, np.ndarray] = {}
    every_bias = []
    for layer in tower.direct_layers:
        output, bias = _output(tower, layer)
        every_bias.append(bias)
        if layer in layers:
            outputs[layer] = output
    heads, biases = [outputs[layer] for layer in layers], np.stack(every_bias)
    return Folded(
        head_to_joint=np.stack([output @ gamma_projection for output in heads]).astype(np.float32),
        head_mean=centred * np.stack([output.mean(axis=-1) for output in heads]).astype(np.float32),
        bias_to_joint=(biases @ gamma_projection).astype(np.float32),
        bias_mean=centred * biases.mean(axis=-1).astype(np.float32),
        gain=centred * gamma_projection.sum(axis=0).astype(np.float32),
        shift=shift.astype(np.float32),
        share_count=np.array([len(biases) + tower.terms], np.float32),
    )


def _output(tower: Tower, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """The map from the heads' numbers of a direct layer to the pooled row: `[head, head_dim, width]` and a bias."""
    if tower.attention_pool is not None:
        return _by_head(tower, _double(tower.attention_pool.out_proj.weight).T), _double(
            tower.attention_pool.out_proj.bias
        )
    block = tower.blocks[layer]
    weight, bias = _double(block.out_proj.weight).T, _double(block.out_proj.bias)
    if block.norm_heads is not None:
        # The norm's own bias is the same for every image, so it is added to the output's bias.
        bias = bias + _double(block.norm_heads.bias) @ weight
        weight = _double(block.norm_heads.weight)[:, None] * weight
    by_head = _by_head(tower, weight)
    if block.norm_output is not None:
        # The norm centres and scales the bias too. Each head gets one more row, with 1/H of the bias.
        bias_by_head = np.broadcast_to(bias / tower.heads, (tower.heads, 1, len(bias)))
        by_head = np.concatenate([by_head, bias_by_head], axis=1)
        by_head = (by_head - by_head.mean(axis=-1, keepdims=True)) * _double(block.norm_output.weight)
        bias = _double(block.norm_output.bias)
    return by_head, bias


def _by_head(tower: Tower, weight: np.ndarray) -> np.ndarray:
    return weight.reshape(tower.heads, -1, weight.shape[1])


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
