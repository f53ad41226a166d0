"""The steps of an image tower's forward pass: pixels to rows, attention, MLP, and the pooled row.

tower.py puts them together for one pass, and variants.py for many sets of pruned heads. In all methods, `x` is the
residual stream `[batch, token, width]`, and `added` is what `x` still lacks: the output of the last attention or MLP.
The next norm adds it, since it reads the rows anyway. Where products add their outputs to `x` in place, `x` lacks only
the sum of their biases, `[width]`, since such a product takes none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from headspan.model.description import Description
from headspan.model.joint import embedding
from headspan.model.layers import AttentionPool, Block, Convolution, Linear, Mlp, Norm
from headspan_kernels.reference import ACTIVATIONS, Emitted


@dataclass(frozen=True, slots=True)
class Steps(Description):
    """An image tower whose steps can be run one by one."""

    def embed(self, pixels: Tensor) -> Tensor:
        """The rows that enter the first block, from normalised pixels."""
        x = pixels.to(self.dtype)
        for step in self.patch_embed:
            x = self._convolve(x, step)
            x = x if step.activation is None else ACTIVATIONS[step.activation](x)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.normed(self.ln_pre, x)

    def _convolve(self, x: Tensor, step: Convolution) -> Tensor:
        height, width = step.kernel
        if step.stride != step.kernel:
            return F.conv2d(x, step.weight.unflatten(1, (-1, height, width)), step.bias, stride=step.stride)
        # Patches that do not overlap are a matrix product. cuDNN's convolution would use TF32 for float32.
        patches = x.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5)
        return self.ops.linear(patches.flatten(3), step.weight, step.bias).permute(0, 3, 1, 2)

    def normed(self, norm: Norm | None, x: Tensor) -> Tensor:
        """The norm of `x`; `x` itself without a norm."""
        return x if norm is None else self.ops.layer_norm(x, *norm)

    def _add_norm(self, norm: Norm | None, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + added`, and its norm; the first without `added` if that is a sum of biases."""
        if norm is None:
            rows = summed(x, added)
            return rows, rows
        if added is not None and added.ndim == 1:
            return x, self.ops.layer_norm(x, *norm, added)
        normed = self.ops.add_layer_norm(x, added, *norm)
        return normed.rows, normed.normed

    def mlp(self, mlp: Mlp, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + added`, and the MLP's output on it."""
        rows, hidden = self.hidden(mlp, x, added)
        return rows, self.normed(mlp.norm_output, self.ops.linear(hidden, *mlp.fc2))

    def hidden(self, mlp: Mlp, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x + added`, and what enters the MLP's second linear map."""
        rows, y = self._add_norm(mlp.norm, x, added)
        return rows, self.normed(mlp.norm_hidden, self.ops.linear_act(y, *mlp.fc1, mlp.activation, mlp.gated))

    def written(self, x: Tensor, y: Tensor, linear: Linear, biases: Tensor | None) -> tuple[Tensor, Tensor]:
        """`x`, and what it lacks after a linear map of `y`: the map's output, or `biases` if the product adds it."""
        if biases is None:
            return x, self.ops.linear(y, *linear)
        self.ops.add_linear(x, y, linear.weight)
        return x, biases

    def attend(
        self, block: Block, x: Tensor, added: Tensor | None, pooling: Tensor | None = None, slot: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Emitted]:
        """`x + added`, all rows' head outputs, and what the pooled row takes from each head.

        `α v` is computed if there is a `slot` for it, and written there unless norms follow the heads.
        """
        rows, y = self._add_norm(block.norm_attention, x, added)
        qkv = self._apply_rope(self.ops.linear(y, *block.qkv), 2)
        out = None if block.has_output_norms else slot
        head_outputs, emitted = self.ops.attention_emit(
            qkv, self.trunk_heads, pooling, slot is not None, out, block.position_bias
        )
        return rows, head_outputs, emitted

    def attend_class_token(
        self, block: Block, x: Tensor, added: Tensor | None, slot: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Emitted]:
        """As `attend` for the last block, where only the class token's row is needed."""
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
        return rows[:, 0], head_outputs, emitted

    def attend_in_pool(
        self, pool: AttentionPool, x: Tensor, slot: Tensor | None = None
    ) -> tuple[Tensor, Emitted, Tensor, Tensor]:
        """The head outputs of the pooling layer, what they emit, and its query and keys.

        One query, the same for every image, attends to the rows. There is no residual connection.
        """
        key_value = self.ops.linear(self.ops.layer_norm(x[:, pool.skip :], *pool.norm), *pool.key_value)
        query = pool.query.expand(len(x), -1)
        head_outputs, emitted = self.ops.pooled_attention(query, key_value, pool.heads, slot is not None, slot)
        return head_outputs, emitted, query, key_value[..., : query.shape[1]]

    def projected(self, block: Block, head_outputs: Tensor, without: Sequence[int] = ()) -> Tensor:
        """The output projection of head outputs, before any norm that follows it; heads `without` count as zero."""
        normed = self.normed(block.norm_heads, head_outputs)
        return self.ops.linear(zeroed(normed, without, self.trunk_heads), *block.out_proj)

    def attend_layer(
        self, layer: int, x: Tensor, added: Tensor | None, equal_pooling: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`x + added` and the head outputs of a layer: of the class token alone where nothing else is needed later."""
        only_class_token = layer == self.layers - 1 and equal_pooling is None
        attend = self.attend_class_token if only_class_token else self.attend
        rows, head_outputs, _ = attend(self.blocks[layer], x, added)
        return rows, head_outputs

    def after_heads(
        self, layer: int, rows: Tensor, head_outputs: Tensor, without: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """The rows after a layer's heads, and its MLP's output on them; heads `without` count as zero."""
        block = self.blocks[layer]
        return self.mlp(block.mlp, rows, self.normed(block.norm_output, self.projected(block, head_outputs, without)))

    def after_pool(self, pool: AttentionPool, head_outputs: Tensor, without: Sequence[int] = ()) -> Tensor:
        """The pooled row after the heads of the attention pooling and its MLP; heads `without` count as zero."""
        state: Tensor = self.ops.linear(zeroed(head_outputs, without, pool.heads), *pool.out_proj)
        return state if pool.mlp is None else summed(*self.mlp(pool.mlp, state, None))

    def embedding_of(self, x: Tensor, equal_pooling: Tensor | None) -> Tensor:
        """The embeddings, not normalised, of the last rows, or of the pooled row after an attention pooling."""
        state = pooled(x, self.pooling_of(x, equal_pooling))
        return embedding(state, self.final_std(x, state), self)

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

    def equal_pooling(self, device: torch.device) -> Tensor | None:
        """Equal weights of the patch rows in the pooled row, `[1, token]`; None unless the rows are averaged."""
        if not self.mean_pooled:
            return None
        prefix, tokens = len(self.prefix), len(self.pos_embed)
        pooling = torch.full((1, tokens), 1 / (tokens - prefix), device=device)
        pooling[:, :prefix] = 0
        return pooling

    def pooling_of(self, x: Tensor, pooling: Tensor | None) -> Tensor | None:
        """The weights of the last block's rows `x` in the pooled row, given the equal ones.

        They differ if each row is divided by its own `s` before the mean: these weights make the mean of the normalised
        rows equal to the norm of one weighted mean.
        """
        if not self.runs_twice or pooling is None or self.ln_post is None:
            return pooling
        weighted = pooling / deviation(x.float(), self.ln_post.eps)
        return weighted / weighted.sum(dim=1, keepdim=True)

    def final_std(self, x: Tensor, state: Tensor) -> Tensor:
        """The `s` by which the final norm divides the pooled row `state` of the rows `x`; 1 without such a norm."""
        if self.ln_post is None:
            return torch.ones_like(state[:, 0])
        if not (self.mean_pooled and self.norm_before_pooling):
            return deviation(state, self.ln_post.eps)
        return 1 / (1 / deviation(x[:, len(self.prefix) :].float(), self.ln_post.eps)).mean(dim=1)


def zeroed(head_outputs: Tensor, without: Sequence[int], heads: int) -> Tensor:
    """Head outputs `[batch, …, width]` of a layer of `heads` heads, with zeros in place of the heads `without`."""
    if not without:
        return head_outputs
    kept = head_outputs.clone().unflatten(-1, (heads, -1))
    kept[..., list(without), :] = 0
    return kept.flatten(-2)


def summed(x: Tensor, added: Tensor | None) -> Tensor:
    """`x + added`, in the type of `x`; `x` if nothing is to be added."""
    return x if added is None else (x + added).to(x.dtype)


def pooled(x: Tensor, pooling: Tensor | None) -> Tensor:
    """The pooled row of `x`, float32; `x` itself if it has no token axis."""
    if x.ndim == 2:
        return x.float()
    if pooling is None:
        # A copy, since products may add to `x` in place later.
        return x[:, 0].to(torch.float32, copy=True)
    return torch.einsum("bnd,bn->bd", x.float(), pooling.expand(len(x), -1))


def deviation(x: Tensor, eps: float) -> Tensor:
    """`sqrt(var + eps)` over the last axis."""
    return torch.sqrt(x.var(dim=-1, correction=0) + eps)
