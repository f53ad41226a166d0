"""The fixed matrices of the decomposition, computed once from a tower's weights, in float64.

A head's contribution to the embedding is its `head_dim` numbers times `W_O · diag(γ) · P`: the product
is taken here, so that nothing afterwards needs the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from headspan.emit.shares import Folded
from headspan.model.tower import Tower


def fold(tower: Tower, layers: Sequence[int]) -> Folded:
    """Fold the output projections of `layers`, the final norm and the projection of `tower`."""
    gamma_projection = _double(tower.norm_after.weight)[:, None] * _double(tower.projection)
    # [out, in] to [head, head_dim, width].
    outputs = [
        _double(tower.blocks[layer].output.weight).T.reshape(tower.heads, tower.head_dim, tower.width)
        for layer in layers
    ]
    biases = np.stack([_double(block.output.bias) for block in tower.blocks])
    return Folded(
        head_to_joint=np.stack([output @ gamma_projection for output in outputs]).astype(np.float32),
        head_mean=np.stack([output.mean(axis=-1) for output in outputs]).astype(np.float32),
        bias_to_joint=(biases @ gamma_projection).astype(np.float32),
        bias_mean=biases.mean(axis=-1).astype(np.float32),
        gain=gamma_projection.sum(axis=0).astype(np.float32),
        shift=(_double(tower.norm_after.bias) @ _double(tower.projection)).astype(np.float32),
    )


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
