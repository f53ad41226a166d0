"""Random sets of heads to compare a group with: as many heads in each layer, or as many anywhere.

A group that lies in other layers than random heads differs from them by its depth, too: the last layers write most of
the embedding. Matched draws therefore have as many heads of each layer as the group has. Source of the unmatched draws
and of equal numbers: Madasu, Lal, Howard, arXiv 2503.11103.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from headspan.errors import counted
from headspan.store.head_space import Head

# How many draws there are unless the user says otherwise.
DRAWS = 20


@dataclass(frozen=True, slots=True)
class Draws:
    """Sets of heads, all different and of equal size."""

    sets: tuple[tuple[Head, ...], ...]
    # What limits the comparison, in sentences without a full stop.
    remarks: tuple[str, ...] = ()


def matched_draws(group: Sequence[Head], among: Collection[Head], draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draw sets of heads of `among` that are outside `group` and have as many heads of each layer as it.

    If a layer has too few other heads, all of them are taken, and the rest is drawn from the nearest layers with heads
    left, the later one first; a remark says so. If fewer different sets exist than `draws`, every set is given. No sets
    are given if `among` has too few other heads. Draws depend on the group and on `seed` alone.
    """
    counts, others = _counts(group), _others(group, among)
    available = {layer: len(heads) for layer, heads in others.items()}
    wanted = {layer: min(count, available.get(layer, 0)) for layer, count in counts.items()}
    remarks = []
    for layer, count in counts.items():
        for _ in range(count - min(count, available.get(layer, 0))):
            near = [each for each in available if available[each] > wanted.get(each, 0)]
            if not near:
                return Draws((), (f"only {counted(sum(available.values()), 'head')} outside for {len(group)} inside",))
            # Sorting by the layer decides ties: the later one.
            chosen = min(near, key=lambda each: (abs(each - layer), -each))
            wanted[chosen] = wanted.get(chosen, 0) + 1
        if count > available.get(layer, 0):
            left = counted(available.get(layer, 0), "head")
            remarks.append(f"layer {layer} has {left} outside for {count} inside; the rest is of the nearest layers")
    return _drawn(
        [(others[layer], count) for layer, count in wanted.items() if count], draws, [seed, *_key(group)], remarks
    )


def unmatched_draws(group: Sequence[Head], among: Collection[Head], draws: int = DRAWS, seed: int = 0) -> Draws:
    """Draw sets of as many heads as `group` has, in any layer of `among`, outside `group`.

    This is the published comparison for high heads, in which depth is not controlled for. Otherwise as `matched_draws`.
    """
    left = sorted(set(among) - set(group))
    if len(left) < len(group):
        return Draws((), (f"only {counted(len(left), 'head')} outside for {len(group)} inside",))
    return _drawn([(left, len(group))], draws, [seed, 1, *_key(group)], [])


def equal_draws(
    first: Sequence[Head], second: Sequence[Head], in_layer: bool = False, draws: int = DRAWS, seed: int = 0
) -> tuple[Draws, Draws]:
    """Draw equal numbers of heads of two groups: as many as the smaller one has.

    With `in_layer` the numbers are equal in each layer. Both are empty if no layer has heads of both groups.
    """
    if not in_layer:
        size = min(len(first), len(second))
        parts = [[(sorted(set(group)), size)] for group in (first, second)]
    else:
        counts, groups = (
            [_counts(group) for group in (first, second)],
            [_others((), group) for group in (first, second)],
        )
        both = {layer: min(counts[0][layer], counts[1][layer]) for layer in counts[0] if layer in counts[1]}
        parts = [[(group[layer], count) for layer, count in both.items()] for group in groups]
    if not any(count for part in parts for _, count in part):
        return Draws((), ("no layer has heads of both groups",)), Draws(())
    found = [_drawn(part, draws, [seed, 2 + place, int(in_layer)], []) for place, part in enumerate(parts)]
    return found[0], found[1]


def _drawn(
    parts: Sequence[tuple[Sequence[Head], int]], draws: int, key: Sequence[int], remarks: Sequence[str]
) -> Draws:
    """Draw `count` of each part's heads, `draws` times; all possible sets if there are no more."""
    possible = math.prod(math.comb(len(heads), count) for heads, count in parts)
    if possible <= draws:
        every = product(*(combinations(heads, count) for heads, count in parts))
        sets = [tuple(sorted(head for part in each for head in part)) for each in every]
        few = [f"only {counted(possible, 'different set')} of heads can be drawn"] if possible < draws else []
        return Draws(tuple(sets), (*remarks, *few))
    random = np.random.default_rng(list(key))
    # Different sets, in the order in which they were drawn.
    found: dict[tuple[Head, ...], None] = {}
    while len(found) < draws:
        picked = [heads[n] for heads, count in parts for n in random.choice(len(heads), count, replace=False)]
        found.setdefault(tuple(sorted(picked)))
    return Draws(tuple(found), tuple(remarks))


def _counts(heads: Sequence[Head]) -> dict[int, int]:
    """The number of heads of each layer, the first layer first."""
    return dict(sorted(Counter(layer for layer, _ in set(heads)).items()))


def _others(group: Collection[Head], among: Collection[Head]) -> dict[int, list[Head]]:
    """The heads of `among` outside `group`, by layer."""
    found: dict[int, list[Head]] = {}
    for head in sorted(set(among) - set(group)):
        found.setdefault(head[0], []).append(head)
    return found


def _key(heads: Sequence[Head]) -> list[int]:
    return [number for head in sorted(set(heads)) for number in head]
