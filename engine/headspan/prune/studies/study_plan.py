"""Decide which sets of heads a study prunes: its groups, random heads to compare them with, and single heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from headspan.concepts.consistency import ConceptConsistency
from headspan.errors import SettingsError
from headspan.head_names import head_name
from headspan.prune.choice.draws import DRAWS, Draws, equal_draws, matched_draws, unmatched_draws
from headspan.prune.choice.groups import CCS_GROUPS, HeadGroup, head_group
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store

Kind = Literal["group", "random", "unmatched", "equal", "equal in layer", "single"]
# What may be named beside groups: random heads matched in layer, or not, equal numbers of two groups, and single heads.
CONTROLS = ("random", "unmatched", "equal", "single")


@dataclass(frozen=True, slots=True)
class HeadSet:
    """A set of heads that a study prunes."""

    kind: Kind
    # The group that it is or is compared with; for equal numbers `high beside low`, for a single head `L22.H13`.
    of: str
    heads: tuple[Head, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All sets of a study, and what there is to say about them."""

    sets: tuple[HeadSet, ...]
    groups: tuple[HeadGroup, ...]
    remarks: tuple[str, ...]


def plan_study(
    store: Store,
    names: Sequence[str],
    scores: ConceptConsistency | str | None = None,
    *,
    any_layer: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Plan:
    """The sets for `names`, which are groups as in `head_group`, and controls.

    A group without heads stays in the plan, without sets. Raises SettingsError as `head_group` does, if no group is
    named, and if there is nothing to prune.
    """
    if unknown := [name for name, value in (("draws", draws), ("seed", seed)) if value < 0]:
        raise SettingsError(f"{unknown[0]} is negative; give 0 or more")
    wanted = [name for name in CONTROLS if name in names]
    found = [head_group(store, each, scores, any_layer=any_layer) for each in names if each not in CONTROLS]
    groups = tuple({each.name: each for each in found}.values())
    if not groups and wanted != ["single"]:
        raise SettingsError(
            f"heads {', '.join(names) or 'none'}: name a group of heads to prune, such as high, low, label:NAME or "
            "L22.H13,L23.H1"
        )
    some = [each for each in groups if each.heads]
    if not some and "single" not in wanted:
        why = "; ".join(f"{each.name}: {each.why_empty}" for each in groups)
        raise SettingsError(f"{store.path}: there are no heads to prune ({why}); name other groups of heads")
    sets = [HeadSet("group", each.name, each.heads) for each in some]
    remarks = [f"{each.name}: {each.why_empty}, so the study goes on without it" for each in groups if each.why_empty]
    among = _among(store, some)
    if "random" in wanted:
        for each in some:
            _add(sets, remarks, "random", each.name, matched_draws(each.heads, among, draws, seed))
    if "unmatched" in wanted:
        for each in some:
            _add(sets, remarks, "unmatched", each.name, unmatched_draws(each.heads, among, draws, seed))
    if "equal" in wanted:
        _add_equal(sets, remarks, some, draws, seed)
    if "single" in wanted:
        sets += [HeadSet("single", head_name(*head), (head,)) for head in stored_heads(store)]
    return Plan(tuple(sets), groups, tuple(remarks))


def _among(store: Store, groups: Sequence[HeadGroup]) -> list[Head]:
    """The heads that random ones are drawn from: those of the stored layers, and of layers that groups name."""
    layers = sorted({*store.layers, *(layer for each in groups for layer, _ in each.heads)})
    return [(layer, head) for layer in layers for head in range(store.heads_per_layer)]


def _add(sets: list[HeadSet], remarks: list[str], kind: Kind, of: str, draws: Draws) -> None:
    sets += [HeadSet(kind, of, heads) for heads in draws.sets]
    what = {"random": "random heads for", "unmatched": "unmatched heads for"}.get(kind, f"numbers {kind},")
    remarks += [f"{what} {of}: {each}" for each in draws.remarks]


def _add_equal(sets: list[HeadSet], remarks: list[str], groups: Sequence[HeadGroup], draws: int, seed: int) -> None:
    """Equal numbers of each two of the groups of scores, over all layers and in each."""
    scored = [each for each in groups if each.name in CCS_GROUPS]
    if len(scored) < 2:
        remarks.append("equal numbers of heads need two of the groups high, moderate and low, with heads in both")
    for first, second in combinations(scored, 2):
        for kind, in_layer in (("equal", False), ("equal in layer", True)):
            both = equal_draws(first.heads, second.heads, in_layer, draws, seed)
            for own, other, drawn in ((first, second, both[0]), (second, first, both[1])):
                _add(sets, remarks, kind, f"{own.name} beside {other.name}", drawn)  # type: ignore[arg-type]
