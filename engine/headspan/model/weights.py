"""A module's weights as the tower keeps them, float32; what the tower cannot run is UnsupportedModel.

Shared by the converters of open_clip's and timm's Vision Transformers.
"""

from __future__ import annotations

import timm.layers
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from headspan.model.layers import Linear, Norm


class UnsupportedModel(Exception):
    """Why an image tower cannot be decomposed: the end of a sentence that begins with the model's name."""


def as_float(tensor: Tensor) -> Tensor:
    """The tensor, detached, as float32."""
    return tensor.detach().to(torch.float32)


def linear_of(module: nn.Linear, scale: Tensor | None = None) -> Linear:
    """A linear map, zeros where it has no bias, with the LayerScale behind it folded in."""
    weight = as_float(module.weight)
    bias = weight.new_zeros(len(weight)) if module.bias is None else as_float(module.bias)
    if scale is None:
        return Linear(weight, bias)
    gamma = as_float(scale)
    return Linear(gamma[:, None] * weight, gamma * bias)


def side_by_side(*maps: Linear) -> Linear:
    """Several maps of the same rows as one."""
    return Linear(torch.cat([part.weight for part in maps]), torch.cat([part.bias for part in maps]))


def norm_of(module: nn.Module) -> Norm | None:
    """A LayerNorm's parameters, None where the model has no norm in that place."""
    if isinstance(module, nn.Identity):
        return None
    if not isinstance(module, nn.LayerNorm) or module.weight is None or module.bias is None:
        raise UnsupportedModel(f"its norms are {type(module).__name__}, not LayerNorms with weight and bias")
    return Norm(as_float(module.weight), as_float(module.bias), module.eps)


def activation_of(module: nn.Module) -> str:
    """The name of an activation."""
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
    raise UnsupportedModel(f"its MLPs use {type(module).__name__}, and headspan knows GELU, QuickGELU and SiLU")
