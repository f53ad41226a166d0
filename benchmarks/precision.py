"""Compare a tower's contributions in a smaller type with a float64 pass of the same weights.

The float64 pass runs on PyTorch's plain ops, the other pass on the ops that serve its device. For towers with a class
token and no norm after their heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu import relative_error
from headspan.model import description
from headspan.model.layers import Norm
from headspan.model.tower import PooledRow, Tower
from headspan_kernels import reference

# Limits for bf16: the sum of contributions against the exact embedding.
SUM_ERROR, COSINE = 1e-2, 0.9999
# Limit for float32: 24 layers of roundings make about 1e-5, and a TF32 product would make 1e-3.
FLOAT32_ERROR = 1e-4


class Exact:
    """A float64 pass of `tower`, float32, over `pixels`, `[batch, 3, height, width]`, both on one device."""

    def __init__(self, tower: Tower, pixels: Tensor) -> None:
        self._tower, self._pixels = tower, pixels
        with pytorchs_ops():
            self._row = _emit(_double(tower), pixels.double())
        self._embedding = _embedding(self._row.state.double(), self._row, tower)

    def errors(self, dtype: torch.dtype) -> dict[str, float]:
        """‖got − exact‖ / ‖exact‖ of a pass in `dtype`: of all images' sums of contributions, of all layers' heads and
        patches; and the least cosine of an image's sum with its exact embedding."""
        row = _emit(self._tower.to(self._pixels.device, dtype), self._pixels.to(dtype))
        total = _embedding(_sum_of_terms(row, self._tower), row, self._tower)
        assert row.patches is not None
        assert self._row.patches is not None
        return {
            "sum_error": relative_error(total, self._embedding),
            "cosine": float(torch.cosine_similarity(total, self._embedding).min()),
            "heads_error": relative_error(row.heads, self._row.heads),
            "patches_error": relative_error(row.patches, self._row.patches),
        }


def marks_met(errors: Mapping[str, float]) -> bool:
    """Whether a tower in 16 bits is within the limits."""
    return bool(errors["sum_error"] <= SUM_ERROR and errors["cosine"] >= COSINE)


@contextmanager
def pytorchs_ops() -> Iterator[None]:
    """Within it, towers run on the reference."""
    chosen, description.ops = description.ops, lambda device: reference
    try:
        yield
    finally:
        description.ops = chosen


def _emit(tower: Tower, pixels: Tensor) -> PooledRow:
    return tower.forward(pixels, range(tower.layers), True, True, patches_dtype=torch.float32)


def _double(tower: Tower) -> Tower:
    """The tower in float64, including the final norm and the projection."""
    moved = tower.to(tower.projection.device, torch.float64)
    assert tower.ln_post is not None
    weight, bias, eps = tower.ln_post
    return replace(
        moved,
        ln_post=Norm(weight.double(), bias.double(), eps),
        projection=tower.projection.double(),
        projection_bias=tower.projection_bias.double(),
    )


def _sum_of_terms(row: PooledRow, tower: Tower) -> Tensor:
    """The pooled row as the float64 sum of everything emitted, projected with the exact weights."""
    assert row.terms is not None
    total = row.terms.double().sum(dim=1)
    for layer, block in enumerate(tower.blocks):
        head_outputs = row.heads[:, layer].flatten(1).double()
        total += head_outputs @ block.out_proj.weight.double().T + block.out_proj.bias.double()
    return total


def _embedding(state: Tensor, row: PooledRow, tower: Tower) -> Tensor:
    """A pooled row after the final norm, with the pass's own standard deviation, and the projection."""
    assert tower.ln_post is not None
    weight, bias, _ = tower.ln_post
    mean = state.mean(dim=1, keepdim=True)
    normed = (state - mean) / row.std.double()[:, None] * weight.double() + bias.double()
    return normed @ tower.projection.double() + tower.projection_bias.double()
