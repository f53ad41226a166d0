"""Convert timm's transformer blocks: pre-norm and residual post-norm, plain and gated MLPs.

Queries, keys and values may come from one linear map or from three, with or without biases.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, AttentionRope, GluMlp, LayerScale, SwiGLU
from timm.layers import Mlp as PlainMlp
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block as VitBlock
from timm.models.vision_transformer import ResPostBlock
from timm.models.vision_transformer_relpos import RelPosAttention, RelPosBlock, ResPostRelPosBlock
from torch import Tensor, nn

from headspan.model.layers import Block, Linear, Mlp, Norm
from headspan.model.weights import UnsupportedModel, activation_of, as_float, linear_of, norm_of, side_by_side

_PRE_NORM = (VitBlock, EvaBlock, RelPosBlock)
_POST_NORM = (ResPostBlock, EvaBlockPostNorm, ResPostRelPosBlock)
_ATTENTIONS = (Attention, AttentionRope, EvaAttention, RelPosAttention)


def block_of(block: Any, shared_positions: nn.Module | None) -> Block:
    """The tower's block. `shared_positions` is the relative position bias, if all blocks share one."""
    if type(block) not in _PRE_NORM + _POST_NORM or type(block.attn) not in _ATTENTIONS:
        raise UnsupportedModel(f"its blocks are {type(block).__name__} with {type(block.attn).__name__}")
    attention = block.attn
    _refuse_extras(attention)
    before = type(block) in _PRE_NORM
    norms: tuple[Any, ...] = (norm_of(block.norm1), norm_of(block.norm2))
    positions: Any = getattr(attention, "rel_pos", None) or shared_positions
    return Block(
        norm_attention=norms[0] if before else None,
        qkv=_qkv(attention),
        position_bias=None if positions is None else as_float(positions.get_bias())[0],
        norm_heads=norm_of(getattr(attention, "norm", nn.Identity())),
        out_proj=linear_of(attention.proj, _layer_scale(block, 1)),
        norm_output=None if before else norms[0],
        mlp=mlp_of(block.mlp, norms[1] if before else None, _layer_scale(block, 2), None if before else norms[1]),
    )


def mlp_of(mlp: nn.Module, norm: Norm | None, layer_scale: Tensor | None, norm_output: Norm | None) -> Mlp:
    """The tower's MLP, with the norm before it and the LayerScale or norm after it."""
    kind: Any = mlp
    if type(mlp) is SwiGLU:
        fc1 = side_by_side(linear_of(kind.fc1_g), linear_of(kind.fc1_x))
    elif (type(mlp) is GluMlp and not kind.gate_last) or (type(mlp) is PlainMlp and isinstance(kind.fc1, nn.Linear)):
        fc1 = linear_of(kind.fc1)
    else:
        raise UnsupportedModel(f"its MLPs are {type(mlp).__name__}")
    return Mlp(
        norm=norm,
        fc1=fc1,
        activation=activation_of(kind.act),
        gated=type(mlp) is not PlainMlp,
        norm_hidden=norm_of(kind.norm),
        fc2=linear_of(kind.fc2, layer_scale),
        norm_output=norm_output,
    )


def _refuse_extras(attention: Any) -> None:
    if getattr(attention, "gate", None) is not None:
        raise UnsupportedModel("its attention outputs are gated")
    if getattr(attention, "num_kv_groups", 1) != 1:
        raise UnsupportedModel("its heads share keys and values")
    if not isinstance(attention.q_norm, nn.Identity):
        raise UnsupportedModel("its queries and keys are normalised")


def _qkv(attention: Any) -> Linear:
    if attention.qkv is None:
        return side_by_side(*(linear_of(part) for part in (attention.q_proj, attention.k_proj, attention.v_proj)))
    fused = linear_of(attention.qkv)
    if getattr(attention, "q_bias", None) is None:
        return fused
    # EVA's keys have no bias.
    query, value = as_float(attention.q_bias), as_float(attention.v_bias)
    return Linear(fused.weight, torch.cat([query, torch.zeros_like(query), value]))


def _layer_scale(block: Any, which: int) -> Tensor | None:
    """The LayerScale after the attention (1) or the MLP (2)."""
    scale = getattr(block, f"ls{which}", None)
    if isinstance(scale, LayerScale):
        return scale.gamma
    return getattr(block, f"gamma_{which}", None)
