"""Convert single modules (linear maps, norms, activations) to a tower's parts, in float32.

The converters of open_clip's and timm's Vision Transformers share these.
"""

from __future__ import annotations

import timm.layers
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from headspan.model.layers import Linear, Norm


class UnsupportedModel(Exception):
    """An image tower that cannot be decomposed. The text ends a sentence that begins with the model's name."""


def as_float(tensor: Tensor) -> Tensor:
    """The tensor as float32, detached."""
    return tensor.detach().to(torch.float32)


def linear_of(module: nn.Linear, layer_scale: Tensor | None = None) -> Linear:
    """A linear map with the LayerScale after it folded in. A missing bias is zeros."""
    weight = as_float(module.weight)
    bias = weight.new_zeros(len(weight)) if module.bias is None else as_float(module.bias)
    if layer_scale is None:
        return Linear(weight, bias)
    gamma = as_float(layer_scale)
    return Linear(gamma[:, None] * weight, gamma * bias)


def side_by_side(*maps: Linear) -> Linear:
    """Several linear maps of the same rows as one."""
    return Linear(torch.cat([part.weight for part in maps]), torch.cat([part.bias for part in maps]))


def norm_of(module: nn.Module) -> Norm | None:
    """A LayerNorm's parameters; None for an identity. Raises UnsupportedModel for other norms."""
    if isinstance(module, nn.Identity):
        return None
    if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
        raise UnsupportedModel(f"its norms are {type(module).__name__}, not LayerNorms with weight and bias")
    return Norm(as_float(module.weight), as_float(module.bias), module.eps)


def activation_of(module: nn.Module) -> str:
    """The name of an activation. Raises UnsupportedModel if the tower does not have it."""
    if isinstance(module, QuickGELU | timm.layers.QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if isinstance(module, timm.layers.GELU):
        return "gelu"
    if isinstance(module, timm.layers.GELUTanh):
        return "gelu_tanh"
    if isinstance(module, nn.SiLU):
        return "silu"
    raise UnsupportedModel(f"its MLPs use {type(module).__name__}, but headspan runs GELU, QuickGELU and SiLU")
