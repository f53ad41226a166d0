"""What images are compared through: the whole embedding, heads, a label's heads, or random heads, without some."""

from __future__ import annotations

from dataclasses import dataclass

from headspan.errors import SettingsError, counted
from headspan.explore.nearest.property_neighbours import random_heads
from headspan.head_names import head_name
from headspan.store.head_space import Head
from headspan.web.asked import ALL_HEADS, EMBEDDING, AskedStore, Missing

_RANDOM = "random:"
# More heads are not named one by one.
_NAMED = 6


@dataclass(frozen=True)
class Through:
    """The heads of `embedding`, `all`, `L3.H2,L3.H4`, `label:NAME` or `random:NAME:SEED`, without removed ones."""

    name: str
    title: str
    # None for the whole embedding.
    heads: list[Head] | None
    # Heads whose contributions to the whole embedding are at their means.
    ablated: list[Head]


def asked_through(asked: AskedStore, through: str, without: str = "") -> Through:
    """What `through` names, without the heads `without`, as `L3.H2,L3.H4`.

    Raises Missing if the store does not have them, and SettingsError if they have another form or none is left.
    """
    removed = removed_heads(asked, without)
    if through == EMBEDDING:
        return Through(through, "the whole embedding" + _ablated(removed), None, removed)
    heads, title = _heads(asked, through)
    left = [head for head in heads if head not in set(removed)]
    if not left:
        raise SettingsError(f"through={through}: no head is left without {without}; remove fewer heads")
    if len(left) < len(heads):
        title += f" without {_in_words([head for head in heads if head in set(removed)])}"
    return Through(through, title, left, [])


def removed_heads(asked: AskedStore, without: str) -> list[Head]:
    """The heads of a parameter `without`, ascending; none if it is empty. Raises as `AskedStore.heads`."""
    found = asked.heads(without) if without.strip() else []
    if found is None:
        raise SettingsError(f"without={without}: names no heads; write L22.H13, for example")
    return sorted(found)


def _heads(asked: AskedStore, through: str) -> tuple[list[Head], str]:
    if through.startswith(_RANDOM):
        label, _, seed = through.removeprefix(_RANDOM).rpartition(":")
        if not (seed.isascii() and seed.isdigit() and len(seed) < 10):
            raise SettingsError(f"through={through}: give a label and a seed, as in random:colours:0")
        # The first draw of `property_neighbours` with this seed.
        drawn = random_heads(asked.store, asked.labelled(label), int(seed), 1)
        if not drawn:
            raise Missing(f"{asked.name}: all heads have the label {label!r}, so none can be drawn outside it")
        return drawn[0], f"{counted(len(drawn[0]), 'random head')} outside the label {label}"
    heads = asked.heads(through)
    assert heads is not None, "the embedding is not asked for here"
    if through == ALL_HEADS:
        return heads, f"all {len(heads)} stored heads"
    if through.startswith("label:"):
        return heads, f"{counted(len(heads), 'head')} labelled {through.removeprefix('label:')}"
    return heads, _in_words(heads)


def _ablated(heads: list[Head]) -> str:
    return f" with {_in_words(heads)} at {'its mean' if len(heads) == 1 else 'their means'}" if heads else ""


def _in_words(heads: list[Head]) -> str:
    return ", ".join(head_name(*head) for head in heads) if len(heads) <= _NAMED else counted(len(heads), "head")
