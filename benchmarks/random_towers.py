"""Towers with random parameters, of which none has its trivial value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import gpu
from headspan.model.layers import Block, Convolution, Linear, Mlp, Norm
from headspan.model.tower import Tower


def random_tower() -> Tower:
    """ViT-L/14 with random weights, float32, on the GPU; no parameter has its trivial value."""

    def draw(*shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
        return torch.randn(shape, device=gpu.DEVICE) * spread + centre

    return tower_of(gpu.SIZES, draw)


def tower_of(size: gpu.Sizes, draw: Callable[..., Tensor], mean_pooled: bool = False) -> Tower:
    """A tower of `size` with parameters from `draw(*shape, spread=…, centre=…)`, pooled by class token or mean."""
    width = size.width

    def norm() -> Norm:
        return Norm(draw(width, spread=0.2, centre=1.0), draw(width, spread=0.1), 1e-5)

    def linear(out: int, columns: int) -> Linear:
        return Linear(draw(out, columns, spread=columns**-0.5), draw(out, spread=0.1))

    def block() -> Block:
        return Block(
            norm_attention=norm(),
            qkv=linear(3 * width, width),
            position_bias=None,
            norm_heads=None,
            out_proj=linear(width, width),
            norm_output=None,
            mlp=Mlp(
                norm=norm(),
                fc1=linear(4 * width, width),
                activation="gelu",
                gated=False,
                norm_hidden=None,
                fc2=linear(width, 4 * width),
                norm_output=None,
            ),
        )

    patch = draw(width, 3, size.patch, size.patch, spread=(3 * size.patch**2) ** -0.5)
    return Tower(
        patch_embed=(Convolution(patch.flatten(1), None, (size.patch, size.patch), (size.patch, size.patch), None),),
        prefix=draw(1, width),
        pos_embed=draw(size.tokens, width, spread=0.3),
        rope=None,
        ln_pre=norm(),
        blocks=tuple(block() for _ in range(size.layers)),
        attention_pool=None,
        ln_post=norm(),
        projection=draw(width, size.joint, spread=width**-0.5),
        projection_bias=draw(size.joint, spread=0.1),
        trunk_heads=size.heads,
        mean_pooled=mean_pooled,
        norm_before_pooling=mean_pooled,
    )
