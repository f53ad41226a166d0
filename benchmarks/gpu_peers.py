"""What `benchmarks.gpu_cases` compares the fused ops with: PyTorch's functions for the same work."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from headspan_kernels import reference


def interpolated(
    pixels: Tensor, where: reference.Placed, size: tuple[int, int], shift: Tensor, spread: Tensor
) -> Tensor:
    """`preprocess` of images of one size by PyTorch's antialiased resize, which does not round to grey levels."""
    levels = F.interpolate(pixels.float(), (where.height, where.width), mode="bicubic", antialias=True)
    kept = levels[:, :, where.top : where.top + size[0], where.left : where.left + size[1]]
    return (kept.clamp(0, 255) - shift) / spread


def batched_product(heads: Tensor, scale: Tensor, mean_and_bias: Tensor, total: Tensor, gram: Tensor) -> None:
    """`add_moments` as one float64 product per head of rows that are padded to a multiple of 8.

    A column of ones gives the sum; heads are read where they are, without a transposed copy.
    """
    _, layers, count, _ = heads.shape
    size = gram.shape[-1]
    padding = -(size + 1) % 8
    used = scale != 0
    terms = torch.where(used[:, None], F.pad(mean_and_bias, (0, 1), value=1.0), 0.0)
    scaled = torch.where(used[:, None, None, None], heads.double() * scale[:, None, None, None], 0.0)
    beside = F.pad(terms, (0, padding))[:, None, None].expand(-1, layers, count, -1)
    rows = torch.cat([scaled, beside], dim=-1).flatten(1, 2).transpose(0, 1)
    products = torch.bmm(rows.transpose(1, 2), rows)
    total += products[:, size, :size].view_as(total)
    gram += products[:, :size, :size].view_as(gram)


def through(backend: SDPBackend, *arguments: Any) -> tuple[Tensor, reference.Emitted]:
    """The reference's attention by one of PyTorch's kernels."""
    with sdpa_kernel(backend):
        return reference.attention_emit(*arguments)
