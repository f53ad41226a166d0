"""Convert open_clip's own Vision Transformers to the uniform tower.

The pooled row is the class token, the mean of the patch rows, or the result of CoCa's attention pooling.
"""

from __future__ import annotations

import torch
from open_clip.transformer import AttentionalPooler, LayerScale, ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from headspan.model.layers import AttentionPool, Block, Convolution, Linear, Mlp
from headspan.model.tower import Tower
from headspan.model.weights import UnsupportedModel, activation_of, as_float, linear_of, norm_of, side_by_side


def tower_of(visual: VisionTransformer) -> Tower:
    """The uniform tower. Raises UnsupportedModel if it cannot run a part of `visual`."""
    blocks = list(visual.transformer.resblocks)
    if not all(type(block) is ResidualAttentionBlock for block in blocks):
        raise UnsupportedModel(f"its blocks are {type(blocks[0]).__name__}, with additional norms or scales")
    if visual.attn_pool is not None:
        # Its first query gives the image embedding; the others serve CoCa's text decoder.
        if visual.attn_pool_contrastive is not None or visual.pool_type != "tok":
            raise UnsupportedModel("its attention pooling has several queries for the embedding")
    elif visual.pool_type not in ("tok", "avg"):
        raise UnsupportedModel("its image tower does not pool its rows")
    kernel = as_float(visual.conv1.weight)
    projection = as_float(visual.proj)
    return Tower(
        patch_embed=(
            Convolution(kernel.flatten(1), None, (kernel.shape[2], kernel.shape[3]), tuple(visual.conv1.stride), None),
        ),
        prefix=as_float(visual.class_embedding)[None],
        pos_embed=as_float(visual.positional_embedding),
        rope=None,
        ln_pre=norm_of(visual.ln_pre),
        blocks=tuple(_block(block) for block in blocks),
        attention_pool=None if visual.attn_pool is None else _attention_pool(visual.attn_pool),
        ln_post=norm_of(visual.ln_post),
        projection=projection,
        projection_bias=projection.new_zeros(projection.shape[1]),
        trunk_heads=blocks[0].attn.num_heads,
        mean_pooled=visual.attn_pool is None and visual.pool_type == "avg",
        norm_before_pooling=not visual.final_ln_after_pool,
    )


def _block(block: ResidualAttentionBlock) -> Block:
    attention = block.attn
    return Block(
        norm_attention=norm_of(block.ln_1),
        qkv=Linear(as_float(attention.in_proj_weight), as_float(attention.in_proj_bias)),
        position_bias=None,
        norm_heads=None,
        out_proj=linear_of(attention.out_proj, _layer_scale(block.ls_1)),
        norm_output=None,
        mlp=Mlp(
            norm=norm_of(block.ln_2),
            fc1=linear_of(block.mlp.c_fc),
            activation=activation_of(block.mlp.gelu),
            gated=False,
            norm_hidden=None,
            fc2=linear_of(block.mlp.c_proj, _layer_scale(block.ls_2)),
            norm_output=None,
        ),
    )


def _layer_scale(scale: nn.Module) -> Tensor | None:
    return scale.gamma if isinstance(scale, LayerScale) else None


def _attention_pool(pool: AttentionalPooler) -> AttentionPool:
    attention = pool.attn
    width = attention.embed_dim
    bias = as_float(attention.in_proj_bias)
    if attention.in_proj_weight is None:
        weights = [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
    else:
        # If the pooler is as wide as its input, torch stores the three weights as one.
        weights = list(attention.in_proj_weight.split(width))
    query, key, value = (Linear(as_float(w), b) for w, b in zip(weights, bias.split(width), strict=True))
    norm = norm_of(pool.ln_k)
    assert norm is not None, "open_clip's pooler always has norms"
    with torch.no_grad():
        latent = as_float(pool.ln_q(pool.query[:1]))[0]
    return AttentionPool(
        query=query.weight @ latent + query.bias,
        norm=norm,
        key_value=side_by_side(key, value),
        out_proj=linear_of(attention.out_proj),
        mlp=None,
        heads=attention.num_heads,
        skip=0,
    )
