"""One uniform image tower and its forward pass, on one page.

The pooled row is the row of the residual stream that becomes the embedding: the class token, or the
weighted mean of the patch rows. The pass returns what that row received from every head, every source
token and every MLP; nothing is projected or folded here (emit/ does that).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
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
        patches_dtype: torch.dtype = torch.float32,
    ) -> PooledRow:
        """Run the tower on normalised pixels and keep what the pooled row received in `layers`.

        `α v` is computed in float32 and written once, in `patches_dtype`.
        """
        pooling = self._pooling(pixels)
        x = self._embed(pixels)
        kept: list[Emitted] = []
        patches = None
        if with_patches:
            shape = (len(x), len(layers), self.heads, self.tokens, self.head_dim)
            patches = torch.empty(shape, dtype=patches_dtype, device=x.device)
        terms = [_pool(x, pooling)] if with_terms else []
        last = len(self.blocks) - 1
        # A block's last sum is left to the next one's norm, which reads the rows anyway.
        added: Tensor | None = None
        for index, block in enumerate(self.blocks):
            slot = patches[:, len(kept)] if patches is not None and index in layers else None
            if index == last and pooling is None:
                x, mixed, emitted = self._attend_class_token(block, x, added, slot)
            else:
                x, mixed, emitted = self._attend(block, x, added, pooling, slot)
            x, added = self._mlp(block, x, mixed)
            if index in layers:
                kept.append(emitted)
            if with_terms:
                terms.append(_pool(added, pooling))
        x = x if added is None else x + added
        state = _pool(x, pooling)
        return PooledRow(
            state=state,
            std=self._final_std(x, state),
            heads=torch.stack([emitted.heads for emitted in kept], dim=1),
            patches=patches,
            terms=torch.stack(terms, dim=1) if with_terms else None,
        )

    def _embed(self, pixels: Tensor) -> Tensor:
        # Patches do not overlap, so their convolution is a matrix product; cuDNN's would take TF32 for float32.
        height, width = self.patch_weight.shape[2:]
        x = pixels.to(self.dtype).unfold(2, height, height).unfold(3, width, width)
        x = x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = F.linear(x, self.patch_weight.flatten(1))
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], dim=1) + self.positions
        return x if self.norm_before is None else self.ops.layer_norm(x, *self.norm_before)

    def _mlp(self, block: Block, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """`x + added`, and the MLP's output on it."""
        normed = self.ops.add_layer_norm(x, added, *block.norm_mlp)
        hidden = ACTIVATIONS[self.activation](F.linear(normed.normed, *block.expand))
        return normed.rows, F.linear(hidden, *block.shrink)

    def _attend(
        self, block: Block, x: Tensor, added: Tensor | None, pooling: Tensor | None, patches: Tensor | None
    ) -> tuple[Tensor, Tensor, Emitted]:
        """`x + added`, the attention's output on it, and what the pooled row took; `α v` goes to `patches`."""
        normed = self.ops.add_layer_norm(x, added, *block.norm_attention)
        qkv = F.linear(normed.normed, *block.qkv)
        mixed, emitted = self.ops.attention_emit(qkv, self.heads, pooling, patches is not None, patches)
        return normed.rows, F.linear(mixed, *block.output), emitted

    def _attend_class_token(
        self, block: Block, x: Tensor, added: Tensor | None, patches: Tensor | None
    ) -> tuple[Tensor, Tensor, Emitted]:
        """As `_attend`, for the last block: no row but the class token's is needed from there on."""
        normed = self.ops.add_layer_norm(x, added, *block.norm_attention)
        weight, bias = block.qkv
        query = F.linear(normed.normed[:, 0], weight[: self.width], bias[: self.width])
        key_value = F.linear(normed.normed, weight[self.width :], bias[self.width :])
        mixed, emitted = self.ops.pooled_attention(query, key_value, self.heads, patches is not None, patches)
        return normed.rows[:, 0], F.linear(mixed, *block.output), emitted

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
            x, mixed, _ = self._attend(block, x, None, None, None)
            x, added = self._mlp(block, x, mixed)
            x = x + added
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
    scale, shift = _levels(tuple(mean), tuple(std), pixels.device)
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2).to(dtype)


@cache
def _levels(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Spread and middle in grey levels; kept, since bringing numbers to a GPU waits for all that it has to do."""
    return torch.tensor(std, device=device) * 255, torch.tensor(mean, device=device) * 255


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
