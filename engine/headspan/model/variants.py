"""Embeddings of one batch by many variants of a tower, each without other heads, in one pass.

Variants that lack the same heads up to a layer share all rows before that layer's output projection, its attention
included. Only what follows is computed for each. The largest group of variants goes on with the shared rows, so that
at most `log2(variants) + 1` layers' rows are in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from headspan.head_names import Head
from headspan.model.pruned import by_layer
from headspan.model.steps import summed
from headspan.model.tower import Tower

# The heads of each layer that a variant lacks.
_Without = tuple[tuple[int, ...], ...]


@torch.inference_mode()
def embeddings_of_variants(
    tower: Tower, pixels: Float[Tensor, "batch 3 height width_px"], sets: Sequence[Iterable[Head]]
) -> Float32[Tensor, "set batch joint"]:
    """The embeddings, not normalised, of normalised pixels by `pruned(tower, heads)` for the heads of each of `sets`.

    An empty set is the whole model. Equal sets are computed once. Raises SettingsError if the tower has no such head.
    """
    variants: list[_Without] = []
    for heads in sets:
        without = by_layer(tower, heads)
        variants.append(tuple(without.get(layer, ()) for layer in range(tower.layers)))
    found = torch.empty(len(variants), len(pixels), tower.joint, device=pixels.device)
    if variants:
        own = _Pass(tower, tower.equal_pooling(pixels.device), found, variants)
        own.run(0, tower.embed(pixels), None, list(dict.fromkeys(variants)))
    return found


@dataclass(frozen=True, slots=True)
class _Pass:
    tower: Tower
    pooling: Tensor | None
    # Filled with the embeddings of each of `every`, in which a variant may occur more than once.
    embeddings: Float32[Tensor, "set batch joint"]
    every: Sequence[_Without]

    def run(self, first: int, x: Tensor, added: Tensor | None, variants: Sequence[_Without]) -> None:
        """Compute the embeddings of `variants` from the rows `x + added` that enter layer `first`."""
        tower = self.tower
        for layer in range(first, len(tower.blocks)):
            rows, head_outputs = tower.attend_layer(layer, x, added, self.pooling)
            *smaller, (without, variants) = _groups(layer, variants)
            for own, some in smaller:
                self.run(layer + 1, *tower.after_heads(layer, rows, head_outputs, own), some)
            # The rows that the groups shared are freed as soon as the last group has its own.
            x, added = tower.after_heads(layer, rows, head_outputs, without)
            del rows, head_outputs
        self._finish(summed(x, added), variants)

    def _finish(self, x: Tensor, variants: Sequence[_Without]) -> None:
        """The embeddings of `variants`, which agree in all layers before the pooling, from the last block's rows."""
        pool = self.tower.attention_pool
        if pool is None:
            (variant,) = variants
            self._keep(variant, x)
            return
        head_outputs = self.tower.attend_in_pool(pool, x)[0]
        for variant in variants:
            self._keep(variant, self.tower.after_pool(pool, head_outputs, variant[-1]))

    def _keep(self, variant: _Without, x: Tensor) -> None:
        found = self.tower.embedding_of(x, self.pooling)
        for place, other in enumerate(self.every):
            if other == variant:
                self.embeddings[place] = found


def _groups(layer: int, variants: Sequence[_Without]) -> list[tuple[tuple[int, ...], list[_Without]]]:
    """The variants by the heads of `layer` that they lack, the largest group last."""
    groups: dict[tuple[int, ...], list[_Without]] = {}
    for variant in variants:
        groups.setdefault(variant[layer], []).append(variant)
    return sorted(groups.items(), key=lambda group: len(group[1]))
