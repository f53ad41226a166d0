"""Soft pruning: a tower whose output projections take nothing from some heads.

The heads' slices of the output projection are zero, and its bias stays. So every row and every later layer lacks what
these heads wrote: the total effect. Source: Madasu, Lal and Howard, "Quantifying Interpretability in CLIP Models with
Concept Consistency", arXiv 2503.11103.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from operator import index
from typing import TypeVar

from headspan.errors import SettingsError
from headspan.head_names import Head, head_name
from headspan.model.description import Description
from headspan.model.layers import AttentionPool, Block
from headspan.model.steps import zeroed

_Kind = TypeVar("_Kind", bound=Description)


def pruned(tower: _Kind, heads: Iterable[Head]) -> _Kind:
    """`tower` without what `heads`, (layer, head) of any layer, write; the other weights are shared with `tower`.

    Where a norm stands between the heads and the projection (EVA02), it still sees these heads. Raises SettingsError if
    the tower has no such head.
    """
    without = by_layer(tower, heads)
    blocks = tuple(
        _without(block, without.get(layer, ()), tower.trunk_heads) for layer, block in enumerate(tower.blocks)
    )
    pool = tower.attention_pool
    if pool is not None:
        pool = _without(pool, without.get(len(blocks), ()), pool.heads)
    return replace(tower, blocks=blocks, attention_pool=pool)


def by_layer(tower: Description, heads: Iterable[Head]) -> dict[int, tuple[int, ...]]:
    """The numbers of the heads of each layer that has some, both ascending. Raises SettingsError as `pruned` does."""
    found: dict[int, tuple[int, ...]] = {}
    for layer, head in sorted({(index(layer), index(head)) for layer, head in heads}):
        count = heads_of(tower, layer)
        if not 0 <= head < count:
            known = f"layer {layer} has heads 0 to {count - 1}" if count else f"it has layers 0 to {tower.layers - 1}"
            raise SettingsError(f"{head_name(layer, head)} is not a head of the model: {known}; choose another head")
        found[layer] = (*found.get(layer, ()), head)
    return found


def heads_of(tower: Description, layer: int) -> int:
    """The number of heads of a layer; attention pooling is the last layer and has its own number. 0 without a layer."""
    if layer not in range(tower.layers):
        return 0
    pool = tower.attention_pool
    return pool.heads if pool is not None and layer == len(tower.blocks) else tower.trunk_heads


_Part = TypeVar("_Part", Block, AttentionPool)


def _without(part: _Part, heads: Sequence[int], count: int) -> _Part:
    if not heads:
        return part
    weight = zeroed(part.out_proj.weight, heads, count)
    return part._replace(out_proj=part.out_proj._replace(weight=weight))
