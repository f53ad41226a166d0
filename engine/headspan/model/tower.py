"""One uniform image tower and its forward pass, on one page.

The pooled row is the row of the residual stream that becomes the embedding: the class token, or the
weighted mean of the patch rows. The pass returns what that row received from every head, every source
token and every MLP; nothing is projected or folded here (emit/ does that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headspan_kernels import ops
from headspan_kernels.reference import Emitted

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


class Norm(NamedTuple):
    """A LayerNorm's parameters."""

    weight: Float[Tensor, " width"]
    bias: Float[Tensor, " width"]
    eps: float


class Linear(NamedTuple):
    """A linear map's parameters, `x Wᵀ + b`."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]


class Block(NamedTuple):
    """A transformer block; a LayerScale, where the model has one, is folded into `output` and `shrink`."""

    norm_attention: Norm
    # Queries, keys and values side by side.
    qkv: Linear
    output: Linear
    norm_mlp: Norm
    expand: Linear
    shrink: Linear


@dataclass(frozen=True, slots=True)
class PooledRow:
    """What the pooled row received, in the residual stream's own space; all float32.

    `state` is its final value, `std` the `s = sqrt(var + eps)` by which the final norm divides it;
    `terms` holds the row that enters the first block and every MLP's output.
    """

    state: Float[Tensor, "batch width"]
    std: Float[Tensor, " batch"]
    heads: Float[Tensor, "batch layer head head_dim"]
    patches: Float[Tensor, "batch layer head token head_dim"] | None
    terms: Float[Tensor, "batch term width"] | None


@dataclass(frozen=True, slots=True)
class Tower:
    """An image tower: weights and the few flags in which open_clip's Vision Transformers differ."""

    patch_weight: Float[Tensor, "width 3 patch_height patch_width"]
    class_token: Float[Tensor, " width"]
    positions: Float[Tensor, "token width"]
    # None where the model has no norm before its first block.
    norm_before: Norm | None
    blocks: tuple[Block, ...]
    norm_after: Norm
    projection: Float[Tensor, "width joint"]
    heads: int
    activation: str
    # Mean of the patch rows instead of the class token.
    mean_pooled: bool
    # Whether the final norm is applied to every row before their mean is taken.
    norm_rows: bool

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.projection.shape[0]

    @property
    def joint(self) -> int:
        """Dimension of the joint image-text space."""
        return self.projection.shape[1]

    @property
    def head_dim(self) -> int:
        """Dimension of one head."""
        return self.width // self.heads

    @property
    def tokens(self) -> int:
        """Number of source tokens, the class token included."""
        return self.positions.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The activations' type."""
        return self.patch_weight.dtype

    @property
    def ops(self) -> ModuleType:
        """The ops of the device on which the weights lie."""
        return ops(self.projection.device)

    def to(self, device: torch.device, dtype: torch.dtype) -> Tower:
        """The same tower elsewhere or in another precision; the final norm and projection stay float32."""
        moved: dict[str, Any] = {f.name: _moved(getattr(self, f.name), device, dtype) for f in fields(self)}
        for name in ("norm_after", "projection"):
            moved[name] = _moved(getattr(self, name), device, torch.float32)
        return replace(self, **moved)

    @torch.inference_mode()
    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width_px"],
        layers: Sequence[int],
        with_patches: bool = False,
        with_terms: bool = False,
    ) -> PooledRow:
        """Run the tower on normalised pixels and keep what the pooled row received in `layers`."""
        pooling = self._pooling(pixels)
        x = self._embed(pixels)
        kept: list[Emitted] = []
        terms = [_pool(x, pooling)] if with_terms else []
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            patches_here = with_patches and index in layers
            if index == last and pooling is None:
                x, emitted = self._attend_class_token(block, x, patches_here)
            else:
                x, emitted = self._attend(block, x, pooling, patches_here)
            mlp = self._mlp(block, x)
            x = x + mlp
            if index in layers:
                kept.append(emitted)
            if with_terms:
                terms.append(_pool(mlp, pooling))
        state = _pool(x, pooling)
        return PooledRow(
            state=state,
            std=self._final_std(x, state),
            heads=torch.stack([emitted.heads for emitted in kept], dim=1),
            patches=torch.stack([e.patches for e in kept if e.patches is not None], dim=1) if with_patches else None,
            terms=torch.stack(terms, dim=1) if with_terms else None,
        )

    def _embed(self, pixels: Tensor) -> Tensor:
        x = F.conv2d(pixels.to(self.patch_weight.dtype), self.patch_weight, stride=self.patch_weight.shape[2:])
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions
        return x if self.norm_before is None else self.ops.layer_norm(x, *self.norm_before)

    def _mlp(self, block: Block, x: Tensor) -> Tensor:
        y = self.ops.layer_norm(x, *block.norm_mlp)
        return F.linear(ACTIVATIONS[self.activation](F.linear(y, *block.expand)), *block.shrink)

    def _attend(self, block: Block, x: Tensor, pooling: Tensor | None, with_patches: bool) -> tuple[Tensor, Emitted]:
        y = self.ops.layer_norm(x, *block.norm_attention)
        mixed, emitted = self.ops.attention_emit(F.linear(y, *block.qkv), self.heads, pooling, with_patches)
        return x + F.linear(mixed, *block.output), emitted

    def _attend_class_token(self, block: Block, x: Tensor, with_patches: bool) -> tuple[Tensor, Emitted]:
        """As `_attend`, for the last block: no row but the class token's is needed from there on."""
        y = self.ops.layer_norm(x, *block.norm_attention)
        weight, bias = block.qkv
        query = F.linear(y[:, 0], weight[: self.width], bias[: self.width])
        key_value = F.linear(y, weight[self.width :], bias[self.width :])
        mixed, emitted = self.ops.pooled_attention(query, key_value, self.heads, with_patches)
        return x[:, 0] + F.linear(mixed, *block.output), emitted

    def _pooling(self, pixels: Tensor) -> Tensor | None:
        """Weights of the rows in the pooled row, `[1 or batch, token]`; None for the class token."""
        if not self.mean_pooled:
            return None
        pooling = torch.full((1, self.tokens), 1 / (self.tokens - 1), device=pixels.device)
        pooling[:, 0] = 0
        if not self.norm_rows:
            return pooling
        # Each row is divided by its own s, known only at the end: a plain pass first, then the weights
        # that make the mean of the normalised rows the norm of one weighted mean.
        x = self._embed(pixels)
        for block in self.blocks:
            x, _ = self._attend(block, x, None, False)
            x = x + self._mlp(block, x)
        weighted = pooling / _std(x.float(), self.norm_after.eps)
        return weighted / weighted.sum(dim=1, keepdim=True)

    def _final_std(self, x: Tensor, state: Tensor) -> Tensor:
        if not (self.mean_pooled and self.norm_rows):
            return _std(state, self.norm_after.eps)
        return 1 / (1 / _std(x[:, 1:].float(), self.norm_after.eps)).mean(dim=1)


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Float[Tensor, "batch 3 height width_px"]:
    """uint8 `[batch, height, width, 3]` to the model's normalised pixels."""
    scale = torch.tensor(std, device=pixels.device) * 255
    shift = torch.tensor(mean, device=pixels.device) * 255
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2).to(dtype)


def _pool(x: Tensor, pooling: Tensor | None) -> Tensor:
    """The pooled row of `x`, float32; `x` is already that row where it has no token axis."""
    if x.ndim == 2:
        return x.float()
    if pooling is None:
        return x[:, 0].float()
    return torch.einsum("bnd,bn->bd", x.float(), pooling.expand(len(x), -1))


def _std(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.var(dim=-1, correction=0) + eps)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    if isinstance(value, tuple):
        moved = [_moved(item, device, dtype) for item in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value
