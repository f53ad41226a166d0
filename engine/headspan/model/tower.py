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

from headspan.model.layers import AttentionPool, Block, Mlp
from headspan.model.steps import Steps, deviation, pooled, summed
from headspan_kernels.reference import Emitted
from headspan_kernels.switches import sums_in_products


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
class Tower(Steps):
    """An image tower that runs."""

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
        x = self.embed(pixels)
        direct = self.attention_pool is None
        layer_heads: list[Tensor] = []
        patches = None
        if with_patches:
            shape = (len(x), len(layers), self.heads, self.tokens, self.head_dim)
            patches = torch.empty(shape, dtype=patches_dtype, device=x.device)
        earlier: list[Tensor] = []
        terms = [pooled(x, pooling)] if with_terms and direct else []
        last = len(self.blocks) - 1
        added: Tensor | None = None
        biases = self._biases_so_far(x.device)
        for index, (block, (after_heads, after_mlp)) in enumerate(zip(self.blocks, biases, strict=True)):
            slot = patches[:, len(layer_heads)] if patches is not None and index in layers else None
            if index == last and direct and pooling is None:
                x, head_outputs, emitted = self.attend_class_token(block, x, added, slot)
            else:
                x, head_outputs, emitted = self.attend(block, x, added, pooling, slot)
                if index in through_pool:
                    earlier.append(head_outputs)
            x, added, heads = self._output(block, x, head_outputs, emitted, slot, after_heads)
            x, added, term = self._mlp(block.mlp, x, added, pooling, with_terms and direct, after_mlp)
            if index in layers:
                layer_heads.append(heads)
            if term is not None:
                terms.append(term)
        taken = None
        if self.attention_pool is not None:
            slot = None if patches is None else patches[:, 0]
            x, heads, taken = self._attention_pool(self.attention_pool, summed(x, added), earlier, slot)
            layer_heads.append(heads)
            added = None
            if self.attention_pool.mlp is not None:
                x, added = self.mlp(self.attention_pool.mlp, x, None)
                terms.append(added.float())
        x = summed(x, added)
        state = pooled(x, pooling)
        return PooledRow(
            state=state,
            std=self.final_std(x, state),
            heads=torch.stack(layer_heads, dim=1),
            patches=patches,
            terms=torch.stack(terms, dim=1) if with_terms and terms else None,
            through_pool=taken,
        )

    def _attention_pool(
        self, pool: AttentionPool, x: Tensor, earlier: Sequence[Tensor], slot: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pooling layer's output, its head outputs, and what it takes of the head outputs of `earlier` layers."""
        head_outputs, emitted, query, key = self.attend_in_pool(pool, x, slot)
        taken = None
        if earlier:
            rows = x[:, pool.skip :]
            std = deviation(rows.float(), pool.norm.eps)
            weights = self.ops.attention_weights(query, key, pool.heads) / std[:, None]
            by_head = [each[:, pool.skip :].float().unflatten(-1, (self.trunk_heads, -1)) for each in earlier]
            taken = torch.stack([torch.einsum("bpn,bnhk->bhpk", weights, each) for each in by_head], dim=1)
        return self.ops.linear(head_outputs, *pool.out_proj), emitted.heads, taken

    def _biases_so_far(self, device: torch.device) -> Sequence[tuple[Tensor, Tensor] | tuple[None, None]]:
        """The biases that `x` lacks after the heads and after the MLP of each block if products add to it in place.

        None where products are written apart, as they must be if a norm follows them.
        """
        if not (all(block.is_pre_norm for block in self.blocks) and sums_in_products(device, *self.switch_key)):
            return [(None, None)] * len(self.blocks)
        biases = torch.stack([linear.bias for block in self.blocks for linear in (block.out_proj, block.mlp.fc2)])
        so_far = biases.float().cumsum(dim=0)
        return list(zip(so_far[::2], so_far[1::2], strict=True))

    def _mlp(
        self,
        mlp: Mlp,
        x: Tensor,
        added: Tensor | None,
        pooling: Tensor | None,
        with_term: bool,
        biases: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """`x` and what it lacks after an MLP, and on request what the pooled row receives from it."""
        x, hidden = self.hidden(mlp, x, added)
        x, output = self.written(x, hidden, mlp.fc2, biases)
        added = self.normed(mlp.norm_output, output)
        if not with_term:
            return x, added, None
        if biases is None:
            return x, added, pooled(added, pooling)
        # The output went into `x`. It is linear in `hidden`, and so is its mean.
        return x, added, self.ops.linear(pooled(hidden, pooling).to(x.dtype), *mlp.fc2).float()

    def _output(
        self,
        block: Block,
        x: Tensor,
        head_outputs: Tensor,
        emitted: Emitted,
        slot: Tensor | None,
        biases: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x` and what it lacks after attention, and the emitted head outputs after the norms on the way, if any.

        Such a norm makes the heads depend on each other only through its mean and `s`. Those are taken from the pooled
        row; given them, each head's contribution is linear again.
        """
        x, added = self.written(x, self.normed(block.norm_heads, head_outputs), block.out_proj, biases)
        if block.norm_heads is not None:
            # The mean over all heads' numbers is subtracted from each number; each token subtracts 1/N of it.
            mean = emitted.heads.mean(dim=(1, 2), keepdim=True)
            std = deviation(emitted.heads.flatten(1), block.norm_heads.eps)[:, None, None]
            heads, patches = (emitted.heads - mean) / std, emitted.patches
            if patches is not None:
                patches = (patches - mean[..., None] / patches.shape[2]) / std[..., None]
            emitted = Emitted(heads, patches)
        if block.norm_output is not None:
            # The norm divides the output's bias by `s` as it does the heads. One more number per head, 1 (1/N per
            # token), stands for the bias.
            std = deviation(pooled(added, None), block.norm_output.eps)[:, None, None]
            heads, patches = F.pad(emitted.heads, (0, 1), value=1) / std, emitted.patches
            if patches is not None:
                patches = F.pad(patches, (0, 1), value=1 / patches.shape[2]) / std[..., None]
            added, emitted = self.normed(block.norm_output, added), Emitted(heads, patches)
        if slot is not None and block.has_output_norms and emitted.patches is not None:
            slot.copy_(emitted.patches)
        return x, added, emitted.heads

    def _pooling_weights(self, pixels: Tensor) -> Tensor | None:
        """Weights of the rows in the pooled row, `[1 or batch, token]`; None unless the rows are averaged."""
        pooling = self.equal_pooling(pixels.device)
        if not self.runs_twice:
            return pooling
        # Each row is divided by its own `s`, which is known only at the end. So a plain pass runs first.
        x, added = self.embed(pixels), None
        for block in self.blocks:
            x, head_outputs, _ = self.attend(block, x, added)
            x, added = self.mlp(block.mlp, x, self.normed(block.norm_output, self.projected(block, head_outputs)))
        return self.pooling_of(summed(x, added), pooling)


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
