"""Pillow's filters for antialiased resizing: the source pixels of each target pixel, and their weights."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float32, Int32
from torch import Tensor

# Half the width of a filter, in source pixels where the image is not made smaller.
SUPPORT = {"bicubic": 2, "bilinear": 1}


@lru_cache(maxsize=1024)
def taps(source: int, target: int, mode: str) -> tuple[Int32[Tensor, " target"], Float32[Tensor, "target tap"]]:
    """For every target pixel its first source pixel and the weights from there on, padded with zeros.

    As Pillow's `precompute_coeffs`; its bicubic kernel has a = -1/2. Filters are stretched by the ratio if that is
    above 1.
    """
    ratio = source / target
    support = SUPPORT[mode] * max(ratio, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5) * ratio
    starts = (centres - support + 0.5).clamp(min=0).floor()
    ends = (centres + support + 0.5).floor().clamp(max=source)
    places = starts[:, None] + torch.arange(int((ends - starts).max()), dtype=torch.float64)
    x = ((places - centres[:, None] + 0.5) / max(ratio, 1.0)).abs()
    if mode == "bilinear":
        weights = (1 - x).clamp(min=0)
    else:
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = weights * (places < ends[:, None])
    return starts.int(), (weights / weights.sum(dim=1, keepdim=True)).float()
