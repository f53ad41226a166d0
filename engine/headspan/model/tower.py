"""The forward pass of every image tower, on one page.

The pooled row becomes the embedding. It is the class token, the weighted mean of the patch rows, or what a latent query
takes from all rows (attention pooling). The pass returns what the pooled row received from every head, every source
token and every MLP. Nothing is projected or folded here; decompose/ does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from headspan.model.description import Description
from headspan.model.layers import AttentionPool, Block, Convolution, Mlp, Norm
from headspan_kernels.reference import ACTIVATIONS, Emitted


@dataclass(frozen=True, slots=True)
class PooledRow:
    """What the pooled row received from every head, source token and MLP.

    All tensors are float32 except `patches`, whose type the caller chooses.
    """

    # The pooled row after the last block or the attention pooling.
    state: Float[Tensor, "batch width"]
    # The `s = sqrt(var + eps)` by which the final norm divides it; 1 if the tower has no final norm.
    std: Float[Tensor, " batch"]
    # Head outputs `Σ_n α v`, and the `α v` of each source token.
    heads: Float[Tensor, "batch layer head head_dim"]
    patches: Float[Tensor, "batch layer head token head_dim"] | None
    # The row that enters the first block, and every MLP's output; with attention pooling, only its MLP's output.
    terms: Float[Tensor, "batch term width"] | None
    # What the attention pooling's heads took from heads of earlier layers: `Σ_n α_n / s_n · (head output at row n)`.
    through_pool: Float[Tensor, "batch earlier_layer trunk_head pool_head trunk_head_dim"] | None = None


@dataclass(frozen=True, slots=True)
class Tower(Description):
    """An image tower that runs.

    In all methods, `x` is the residual stream `[batch, token, width]`, and `added` is the output of the last attention
    or MLP, which is not yet added to `x`. The next norm adds it, since it reads the rows anyway.
    """

    @torch.inference_mode()
    def forward(
        self,
        pixels: Float[Tensor, "batch 3 height width_px"],
        layers: Sequence[int],
        with_patches: bool = False,
        with_terms: bool = False,
        through_pool: Sequence[int] = (),
        patches_dtype: torch.dtype = torch.float32,
    ) -> PooledRow:
        """Run the tower on normalised pixels, and return what the pooled row received in the direct `layers`.

        `through_pool` lists earlier layers of an attention-pooled tower whose head outputs are returned as the pooling
        weights them. `α v` is computed in float32 and written once, in `patches_dtype`.
        """
        pooling = self._pooling_weights(pixels)
        x = self._embed(pixels)
        direct = self.attention_pool is None
        layer_heads: list[Tensor] = []
        patches = None
        if with_patches:
            shape = (len(x), len(layers), self.heads, self.tokens, self.head_dim)
            patches = torch.empty(shape, dtype=patches_dtype, device=x.device)
        earlier: list[Tensor] = []
        terms = [_pool(x, pooling)] if with_terms and direct else []
        last = len(self.blocks) - 1
        added: Tensor | None = None
        for index, block in enumerate(self.blocks):
            slot = patches[:, len(layer_heads)] if patches is not None and index in layers else None
            if index == last and direct and pooling is None:
                x, added, heads = self._attend_class_token(block, x, added, slot)
            else:
                x, added, heads, head_outputs = self._attend(block, x, added, pooling, slot)
                if index in through_pool:
                    earlier.append(head_outputs)
            x, added = self._mlp(block.mlp, x, added)
            if index in layers:
                layer_heads.append(heads)
            if with_terms and direct:
                terms.append(_pool(added, pooling))
        pooled = None
        if self.attention_pool is not None:
            slot = None if patches is None else patches[:, 0]
            x, heads, pooled = self._attention_pool(self.attention_pool, _sum(x, added), earlier, slot)
            layer_heads.append(heads)
            added = None
            if self.attention_pool.mlp is not None:
                x, added = self._mlp(self.attention_pool.mlp, x, None)
                terms.append(added.float())
        x = _sum(x, added)
        state = _pool(x, pooling)
        return PooledRow(
            state=state,
            std=self._final_std(x, state),
            heads=torch.stack(layer_heads, dim=1),
            patches=patches,
            terms=torch.stack(terms, dim=1) if with_terms and terms else None,
            through_pool=pooled,
        )

    def _embed(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.dtype)
        for step in self.patch_embed:
            x = self._convolve(x, step)
            x = x if step.activation is None else ACTIVATIONS[step.activation](x)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self._normed(self.ln_pre, x)

    def _convolve(self, x: Tensor, step: Convolution) -> Tensor:
        height, width = step.kernel
        if step.stride != step.kernel:
            return F.conv2d(x, step.weight.unflatten(1, (-1, height, width)), step.bias, stride=step.stride)
        # Patches that do not overlap are a matrix product. cuDNN's convolution would use TF32 for float32.
        patches = x.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5)
        return self.ops.linear(patches.flatten(3), step.weight, step.bias).permute(0, 3, 1, 2)

    def _normed(self, norm: Norm | None, x: Tensor) -> Tensor:
        return x if norm is None else self.ops.layer_norm(x, *norm)

    def _add_norm(self, norm: Norm | None, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + added`, and its norm."""
        if norm is None:
            rows = _sum(x, added)
            return rows, rows
        normed = self.ops.add_layer_norm(x, added, *norm)
        return normed.rows, normed.normed

    def _mlp(self, mlp: Mlp, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + added`, and the MLP's output on it."""
        rows, y = self._add_norm(mlp.norm, x, added)
        if mlp.gated:
            gate, y = self.ops.linear(y, *mlp.fc1).chunk(2, dim=-1)
            y = ACTIVATIONS[mlp.activation](gate) * y
        else:
            y = self.ops.linear(y, *mlp.fc1, mlp.activation)
        return rows, self._normed(mlp.norm_output, self.ops.linear(self._normed(mlp.norm_hidden, y), *mlp.fc2))

    def _attend(
        self, block: Block, x: Tensor, added: Tensor | None, pooling: Tensor | None, slot: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`x + added`, the attention's output on it, the pooled row's head outputs, and all rows' head outputs.

        `α v` is written to `slot`, if given.
        """
        rows, y = self._add_norm(block.norm_attention, x, added)
        qkv = self._apply_rope(self.ops.linear(y, *block.qkv), 2)
        out = None if block.has_output_norms else slot
        head_outputs, emitted = self.ops.attention_emit(
            qkv, self.trunk_heads, pooling, slot is not None, out, block.position_bias
        )
        output, heads = self._output(block, head_outputs, emitted, slot)
        return rows, output, heads, head_outputs

    def _attend_class_token(
        self, block: Block, x: Tensor, added: Tensor | None, slot: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_attend` for the last block, where only the class token's row is needed."""
        rows, y = self._add_norm(block.norm_attention, x, added)
        weight, bias = block.qkv
        width = block.out_proj.weight.shape[1]
        query = F.linear(y[:, 0], weight[:width], bias[:width])
        key_value = self._apply_rope(F.linear(y, weight[width:], bias[width:]), 1)
        position_bias = None if block.position_bias is None else block.position_bias[:, 0]
        out = None if block.has_output_norms else slot
        head_outputs, emitted = self.ops.pooled_attention(
            query, key_value, self.trunk_heads, slot is not None, out, position_bias
        )
        output, heads = self._output(block, head_outputs, emitted, slot)
        return rows[:, 0], output, heads

    def _attention_pool(
        self, pool: AttentionPool, x: Tensor, earlier: Sequence[Tensor], slot: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pooling layer: one query, the same for every image, attends to the rows. It has no residual connection.

        Returns its output, its head outputs, and what it takes of the head outputs of `earlier` layers.
        """
        rows = x[:, pool.skip :]
        key_value = self.ops.linear(self.ops.layer_norm(rows, *pool.norm), *pool.key_value)
        query = pool.query.expand(len(x), -1)
        head_outputs, emitted = self.ops.pooled_attention(query, key_value, pool.heads, slot is not None, slot)
        pooled = None
        if earlier:
            key = key_value[..., : query.shape[1]]
            weights = self.ops.attention_weights(query, key, pool.heads) / _std(rows.float(), pool.norm.eps)[:, None]
            by_head = [each[:, pool.skip :].float().unflatten(-1, (self.trunk_heads, -1)) for each in earlier]
            pooled = torch.stack([torch.einsum("bpn,bnhk->bhpk", weights, each) for each in by_head], dim=1)
        return self.ops.linear(head_outputs, *pool.out_proj), emitted.heads, pooled

    def _output(
        self, block: Block, head_outputs: Tensor, emitted: Emitted, slot: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What attention adds to the residual stream, and the emitted head outputs after the norms on the way, if any.

        Such a norm makes the heads depend on each other only through its mean and `s`. Those are taken from the pooled
        row; given them, each head's contribution is linear again.
        """
        if not block.has_output_norms:
            return self.ops.linear(head_outputs, *block.out_proj), emitted.heads
        if block.norm_heads is not None:
            # The mean over all heads' numbers is subtracted from each number; each token subtracts 1/N of it.
            mean = emitted.heads.mean(dim=(1, 2), keepdim=True)
            std = _std(emitted.heads.flatten(1), block.norm_heads.eps)[:, None, None]
            heads, patches = (emitted.heads - mean) / std, emitted.patches
            if patches is not None:
                patches = (patches - mean[..., None] / patches.shape[2]) / std[..., None]
            head_outputs, emitted = self.ops.layer_norm(head_outputs, *block.norm_heads), Emitted(heads, patches)
        added = self.ops.linear(head_outputs, *block.out_proj)
        if block.norm_output is not None:
            # The norm divides the output's bias by `s` as it does the heads. One more number per head, 1 (1/N per
            # token), stands for the bias.
            std = _std(_pool(added, None), block.norm_output.eps)[:, None, None]
            heads, patches = F.pad(emitted.heads, (0, 1), value=1) / std, emitted.patches
            if patches is not None:
                patches = F.pad(patches, (0, 1), value=1 / patches.shape[2]) / std[..., None]
            added, emitted = self.ops.layer_norm(added, *block.norm_output), Emitted(heads, patches)
        if slot is not None and emitted.patches is not None:
            slot.copy_(emitted.patches)
        return added, emitted.heads

    def _apply_rope(self, columns: Tensor, parts: int) -> Tensor:
        """Rotate the first `parts` of queries, keys and values, side by side, by the angles of their patches."""
        if self.rope is None:
            return columns
        width = self.blocks[0].out_proj.weight.shape[1] * parts
        cosine, sine = self.rope[:, :, None]
        patches = columns[:, len(self.prefix) :, :width].unflatten(-1, (parts * self.trunk_heads, -1))
        crossed = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
        rotated = (patches * cosine + crossed * sine).to(columns.dtype).flatten(-2)
        # The class token and registers have no position, and are not rotated.
        rotated = torch.cat([columns[:, : len(self.prefix), :width], rotated], dim=1)
        return torch.cat([rotated, columns[..., width:]], dim=-1)

    def _pooling_weights(self, pixels: Tensor) -> Tensor | None:
        """Weights of the rows in the pooled row, `[1 or batch, token]`; None unless the rows are averaged."""
        if not self.mean_pooled:
            return None
        prefix, tokens = len(self.prefix), len(self.pos_embed)
        pooling = torch.full((1, tokens), 1 / (tokens - prefix), device=pixels.device)
        pooling[:, :prefix] = 0
        if not self.runs_twice or self.ln_post is None:
            return pooling
        # Each row is divided by its own `s`, which is known only at the end. So a plain pass runs first. Its weights
        # make the mean of the normalised rows equal to the norm of one weighted mean.
        x, added = self._embed(pixels), None
        for block in self.blocks:
            x, added, _, _ = self._attend(block, x, added, None, None)
            x, added = self._mlp(block.mlp, x, added)
        weighted = pooling / _std(_sum(x, added).float(), self.ln_post.eps)
        return weighted / weighted.sum(dim=1, keepdim=True)

    def _final_std(self, x: Tensor, state: Tensor) -> Tensor:
        if self.ln_post is None:
            return torch.ones_like(state[:, 0])
        if not (self.mean_pooled and self.norm_before_pooling):
            return _std(state, self.ln_post.eps)
        return 1 / (1 / _std(x[:, len(self.prefix) :].float(), self.ln_post.eps)).mean(dim=1)


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype
) -> Float[Tensor, "batch 3 height width_px"]:
    """Turn uint8 `[batch, height, width, 3]` into the model's normalised pixels."""
    scale, shift = _grey_levels(tuple(mean), tuple(std), pixels.device)
    return ((pixels.float() - shift) / scale).permute(0, 3, 1, 2).to(dtype)


@cache
def _grey_levels(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """`std` and `mean` in grey levels. Cached, since copying numbers to a GPU waits for its queued work."""
    return torch.tensor(std, device=device) * 255, torch.tensor(mean, device=device) * 255


def _sum(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x + added


def _pool(x: Tensor, pooling: Tensor | None) -> Tensor:
    """The pooled row of `x`, float32; `x` itself if it has no token axis."""
    if x.ndim == 2:
        return x.float()
    if pooling is None:
        return x[:, 0].float()
    return torch.einsum("bnd,bn->bd", x.float(), pooling.expand(len(x), -1))


def _std(x: Tensor, eps: float) -> Tensor:
    return torch.sqrt(x.var(dim=-1, correction=0) + eps)
