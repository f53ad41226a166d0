"""Convert timm's Vision Transformers, as open_clip builds them, to the uniform tower.

These are SigLIP, MobileCLIP and similar models (timm's VisionTransformer), EVA and the Perception Encoder (Eva), and
models with relative positions (VisionTransformerRelPos). The modules themselves show how the families differ.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent, ConvNormAct, HybridEmbed, PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from headspan.model.convert_timm_blocks import block_of, mlp_of
from headspan.model.layers import AttentionPool, Convolution, Linear
from headspan.model.tower import Tower
from headspan.model.weights import UnsupportedModel, activation_of, as_float, linear_of, norm_of

TRUNKS = (VisionTransformer, Eva, VisionTransformerRelPos)


def tower_of(visual: TimmModel) -> Tower:
    """The uniform tower. Raises UnsupportedModel if it cannot run a part of `visual`."""
    trunk: Any = visual.trunk
    if type(trunk) not in TRUNKS:
        raise UnsupportedModel(f"its image tower is timm's {type(trunk).__name__}, which is not a Vision Transformer")
    pool = getattr(trunk, "attn_pool", None)
    if pool is None and trunk.global_pool not in ("token", "avg"):
        raise UnsupportedModel(f"its image tower pools its rows by {trunk.global_pool!r}")
    if pool is None and trunk.global_pool == "avg" and getattr(trunk, "pool_include_prefix", False):
        raise UnsupportedModel("its mean counts the class token as a patch")
    prefix = _prefix(trunk)
    blocks = tuple(block_of(block, getattr(trunk, "shared_rel_pos", None)) for block in trunk.blocks)
    if (pool is not None or trunk.global_pool == "avg") and any(b.norm_heads or b.norm_output for b in blocks):
        raise UnsupportedModel(
            "its attention has norms after it, and it has no class token to take their mean and scale from"
        )
    before, after = norm_of(trunk.norm), norm_of(trunk.fc_norm)
    if pool is None and before is not None and after is not None:
        raise UnsupportedModel("it has norms before and after its pooling")
    pooled = None if pool is None else _attention_pool(trunk, pool)
    projection, bias = _projection(visual, trunk.embed_dim if pooled is None else len(pooled.out_proj.weight))
    return Tower(
        patch_embed=_patch_embed(trunk.patch_embed),
        prefix=prefix,
        pos_embed=_pos_embed(trunk, len(prefix)),
        rope=_rope(trunk),
        ln_pre=norm_of(getattr(trunk, "norm_pre", nn.Identity())),
        blocks=blocks,
        attention_pool=pooled,
        ln_post=after if pool is not None or before is None else before,
        projection=projection,
        projection_bias=bias,
        trunk_heads=trunk.blocks[0].attn.num_heads,
        mean_pooled=pool is None and trunk.global_pool == "avg",
        norm_before_pooling=before is not None,
    )


def _patch_embed(embed: nn.Module) -> tuple[Convolution, ...]:
    if isinstance(embed, HybridEmbed) and type(embed.backbone) is ConvStem and isinstance(embed.proj, nn.Identity):
        steps: Any = embed.backbone
        return tuple(_stem_convolution(step) for step in steps)
    if type(embed) is PatchEmbed and isinstance(embed.norm, nn.Identity) and not embed.dynamic_img_pad:
        return (_convolution(embed.proj, None),)
    raise UnsupportedModel("its image tower is a hybrid with convolution stages before its Vision Transformer")


def _stem_convolution(step: ConvNormAct) -> Convolution:
    """A convolution with its batch norm, a fixed scale and shift at inference, folded in."""
    if not isinstance(step.bn, nn.BatchNorm2d):
        return _convolution(step.conv, None)
    act: Any = step.bn.act
    plain = _convolution(step.conv, None if isinstance(act, nn.Identity) else activation_of(act))
    assert step.bn.running_mean is not None
    assert step.bn.running_var is not None
    scale = as_float(step.bn.weight) / torch.sqrt(as_float(step.bn.running_var) + step.bn.eps)
    shift = as_float(step.bn.bias) - as_float(step.bn.running_mean) * scale
    bias = shift if plain.bias is None else plain.bias * scale + shift
    return plain._replace(weight=plain.weight * scale[:, None], bias=bias)


def _convolution(conv: nn.Module, activation: str | None) -> Convolution:
    if type(conv) is not nn.Conv2d or conv.padding != (0, 0) or conv.dilation != (1, 1) or conv.groups != 1:
        raise UnsupportedModel(f"its stem is {conv}")
    bias = None if conv.bias is None else as_float(conv.bias)
    weight = as_float(conv.weight)
    return Convolution(
        weight.flatten(1), bias, (weight.shape[2], weight.shape[3]), (conv.stride[0], conv.stride[1]), activation
    )


def _prefix(trunk: Any) -> Tensor:
    tokens = [token for token in (trunk.cls_token, getattr(trunk, "reg_token", None)) if token is not None]
    width = trunk.embed_dim
    return torch.cat([as_float(token)[0] for token in tokens] or [next(trunk.parameters()).new_zeros(0, width)])


def _pos_embed(trunk: Any, prefix: int) -> Tensor:
    """The position embedding of every row, zeros where a row has none."""
    patches = trunk.patch_embed.num_patches
    positions = getattr(trunk, "pos_embed", None)
    if getattr(trunk, "dynamic_img_size", False):
        raise UnsupportedModel("its positions depend on each image's size")
    reference = next(trunk.parameters())
    if positions is None:
        return reference.new_zeros(prefix + patches, trunk.embed_dim)
    rows = as_float(positions)[0]
    return torch.cat([rows.new_zeros(prefix + patches - len(rows), trunk.embed_dim), rows])


def _rope(trunk: Any) -> Tensor | None:
    rope = getattr(trunk, "rope", None)
    if rope is None:
        return None
    if trunk.rope_mixed or any(block.attn.rotate_half for block in trunk.blocks):
        raise UnsupportedModel("its rotary embeddings differ between layers, or rotate halves instead of pairs")
    sine, cosine = as_float(rope.get_embed()).chunk(2, dim=-1)
    return torch.stack([cosine, sine])


def _attention_pool(trunk: Any, pool: nn.Module) -> AttentionPool:
    if not isinstance(pool, AttentionPoolLatent) or pool.latent_len != 1 or pool.pos_embed is not None:
        raise UnsupportedModel(f"its image tower pools its rows by {type(pool).__name__}, not by one latent query")
    norm = norm_of(trunk.norm)
    if norm is None or not isinstance(pool.q_norm, nn.Identity) or not isinstance(pool.proj, nn.Linear):
        raise UnsupportedModel("its attention pooling has additional norms or linear maps")
    latent = as_float(pool.latent)[0, 0]
    query = linear_of(pool.q) if isinstance(pool.q, nn.Linear) else None
    # timm's Eva pools over the class token too, its VisionTransformer only over the patches.
    whole = isinstance(trunk, Eva) or trunk.pool_include_prefix
    return AttentionPool(
        query=latent if query is None else query.weight @ latent + query.bias,
        norm=norm,
        key_value=linear_of(pool.kv),
        out_proj=linear_of(pool.proj),
        mlp=mlp_of(pool.mlp, norm_of(pool.norm), None, None),
        heads=pool.num_heads,
        skip=0 if whole else trunk.num_prefix_tokens,
    )


def _projection(visual: TimmModel, width: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of the map from the pooled row to the joint space; the identity if there is none."""
    maps = [m for m in (visual.trunk.head, *visual.head) if not isinstance(m, nn.Identity | nn.Dropout)]
    if not all(isinstance(m, nn.Linear) for m in maps) or len(maps) > 1:
        raise UnsupportedModel("its pooled row is not projected by one linear map")
    if not maps:
        reference = next(visual.parameters())
        return torch.eye(width, device=reference.device), reference.new_zeros(width)
    projection: Linear = linear_of(maps[0])
    return projection.weight.T, projection.bias
