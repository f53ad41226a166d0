"""The CLIP image towers of the benchmarks: their sizes, random weights, and the sizes of their stores.

All have a class token and a plain MLP of four times the width. No random weight has its trivial value.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch

from benchmarks.gpu import Sizes
from headspan.store.schema import Dimensions

MODELS = {
    "ViT-B-32": Sizes(layers=12, heads=12, head_dim=64, joint=512, patch=32),
    "ViT-B-16": Sizes(layers=12, heads=12, head_dim=64, joint=512, patch=16),
    "ViT-L-14": Sizes(layers=24, heads=16, head_dim=64, joint=768, patch=14),
    "ViT-H-14": Sizes(layers=32, heads=16, head_dim=80, joint=1024, patch=14),
}
TOY = Sizes(layers=3, heads=3, head_dim=16, joint=24, patch=8, pixels=32)


def random_visual(size: Sizes) -> Any:
    """open_clip's image tower of that size with random weights, float32, in evaluation mode."""
    vision = {
        "image_size": size.pixels,
        "patch_size": size.patch,
        "width": size.width,
        "layers": size.layers,
        "head_width": size.head_dim,
    }
    text = {"context_length": 8, "vocab_size": 16, "width": 16, "heads": 1, "layers": 1}
    visual = open_clip.CLIP(embed_dim=size.joint, vision_cfg=vision, text_cfg=text).visual.eval()
    with torch.no_grad():
        for parameter in visual.parameters():
            # Norms start at ones and biases at zeros, which would hide mistakes.
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return visual


def store_size(size: Sizes, images: int, unit_images: int, last_layers: int) -> Dimensions:
    """The sizes of a store of `images` images of that tower."""
    return Dimensions(
        images,
        unit_images,
        layers=tuple(range(size.layers - last_layers, size.layers)),
        all_layers=size.layers,
        direct_layers=size.layers,
        heads=size.heads,
        head_dim=size.head_dim,
        tokens=size.tokens,
        prefix_tokens=1,
        joint=size.joint,
        terms=size.layers + 1,
    )
