"""open_clip's Vision Transformers to the uniform tower; everything else is refused by name.

What is supported is decided twice by the same list: from a config before any weights are fetched, and
from the built module, which must hold nothing that the tower does not run.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.transformer import LayerScale, QuickGELU, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from headspan.errors import ModelError
from headspan.model.tower import Block, Linear, Norm, Tower

SUPPORTED = (
    "open_clip's own VisionTransformer with class-token or mean pooling (ViT-*, *-quickgelu, *-CLIPA, *-worldwide, …)"
)
# Settings of open_clip's vision config that change the blocks themselves.
_BLOCK_VARIANTS = (
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)


def unsupported_reason(config: dict[str, Any]) -> str | None:
    """Why a model of this open_clip config cannot be decomposed, or None where it can."""
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        return f"its image tower is timm's {vision['timm_model_name']}"
    if isinstance(vision.get("layers"), list | tuple):
        return "its image tower is a ResNet"
    if vision.get("attentional_pool"):
        return "its image tower ends in an attentional pooler"
    if vision.get("pool_type") == "none":
        return "its image tower does not pool its rows"
    variants = [name for name in _BLOCK_VARIANTS if vision.get(name)]
    if variants or vision.get("block_type") == "custom":
        return f"its blocks are custom ({', '.join(variants) or 'block_type'})"
    return None


def to_tower(visual: nn.Module, name: str) -> Tower:
    """The uniform tower of an open_clip image tower, float32, on its weights' device.

    Raises ModelError where `visual` is not an open_clip VisionTransformer that the tower can run.
    """
    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None or visual.pool_type == "none":
        raise ModelError(f"{name}: its image tower is a {type(visual).__name__}; headspan decomposes {SUPPORTED}")
    blocks = list(visual.transformer.resblocks)
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise ModelError(f"{name}: its blocks are {type(blocks[0]).__name__}; headspan decomposes {SUPPORTED}")
    return Tower(
        patch_weight=_float(visual.conv1.weight),
        class_token=_float(visual.class_embedding),
        positions=_float(visual.positional_embedding),
        norm_before=None if isinstance(visual.ln_pre, nn.Identity) else _norm(visual.ln_pre),
        blocks=tuple(_block(block) for block in blocks),
        norm_after=_norm(visual.ln_post),
        projection=_float(visual.proj),
        heads=blocks[0].attn.num_heads,
        activation=_activation(blocks[0].mlp.gelu, name),
        mean_pooled=visual.pool_type == "avg",
        norm_rows=not visual.final_ln_after_pool,
    )


def _block(block: ResidualAttentionBlock) -> Block:
    attention = block.attn
    return Block(
        norm_attention=_norm(block.ln_1),
        qkv=Linear(_float(attention.in_proj_weight), _float(attention.in_proj_bias)),
        output=_scaled(attention.out_proj, block.ls_1),
        norm_mlp=_norm(block.ln_2),
        expand=Linear(_float(block.mlp.c_fc.weight), _float(block.mlp.c_fc.bias)),
        shrink=_scaled(block.mlp.c_proj, block.ls_2),
    )


def _scaled(linear: nn.Linear, scale: nn.Module) -> Linear:
    """`linear` with the LayerScale behind it folded in."""
    weight, bias = _float(linear.weight), _float(linear.bias)
    if isinstance(scale, LayerScale):
        gamma = _float(scale.gamma)
        return Linear(gamma[:, None] * weight, gamma * bias)
    return Linear(weight, bias)


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(_float(norm.weight), _float(norm.bias), norm.eps)


def _activation(module: nn.Module, name: str) -> str:
    if isinstance(module, QuickGELU):
        return "quick_gelu"
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    raise ModelError(f"{name}: its MLPs use {type(module).__name__}; headspan knows GELU and QuickGELU")


def _float(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32)
