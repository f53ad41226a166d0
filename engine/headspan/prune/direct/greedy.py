"""Greedy removal: the head whose mean ablation costs least, or most, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Int, Int64

from headspan.errors import SettingsError, counted, percent
from headspan.events import Listener, Progress, ignore
from headspan.explore.nearest.similarities import distinct
from headspan.frames import Tabular
from headspan.prune.direct.judged import Judged
from headspan.prune.direct.sweep import sweep
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes

Order = Literal["least", "most"]


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class GreedyRemoval(Tabular):
    """Heads in the order of their removal, and how many of the images are right after each."""

    order: str
    heads: tuple[Head, ...]
    # Images whose class is known, and how many of them the whole model classifies correctly.
    images: int
    correct_before: int
    # After the removal of each head and of all heads before it.
    correct: Int64[np.ndarray, " head"]

    def __repr__(self) -> str:
        return (
            f"GreedyRemoval({counted(len(self.heads), 'head')} that cost {self.order}, "
            f"{counted(self.images, 'image')}, {percent(self.correct_before / self.images)} right with all heads, "
            f"{percent(self.correct[-1] / self.images)} without these)"
        )

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "step": list(range(1, len(self.heads) + 1)),
            "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads],
            "correct": self.correct.tolist(),
            "accuracy": (self.correct / self.images).tolist(),
        }


def greedy(
    store: Store,
    classes: Classes,
    truths: Int[np.ndarray, " images"],
    count: int,
    order: Order = "least",
    on_progress: Listener = ignore,
    heads: Sequence[Head] | None = None,
) -> GreedyRemoval:
    """Remove `count` heads by mean ablation, one after the other.

    Each step tries every head that is left, beside those removed before. With `order="least"` it removes the head
    without which most images are right, and with `"most"` that without which fewest are. Among heads with equally many,
    the mean loss of margin decides (see `SingleHeads.margin_loss`), then the order of `heads`.

    Args:
        store: The store. It is not changed.
        classes: The classes, as `embed_classes` returns them.
        truths: As in `single_heads`.
        count: How many heads are removed, at most all of `heads`.
        order: `least` or `most`.
        on_progress: Called with a `headspan.events.Progress` after each step.
        heads: The heads to choose from, (layer, head); by default all that are stored.

    Raises SettingsError if there are fewer heads, `order` is another word, sizes do not fit, or a head is not stored;
    StoreError if no unit is finished.
    """
    left = stored_heads(store) if heads is None else distinct(store, heads)
    for layer, head in left:
        store.contents.layer_index(layer, head)
    if order not in ("least", "most"):
        raise SettingsError(f"order {order!r} is unknown; use 'least' or 'most'")
    if not 1 <= count <= len(left):
        raise SettingsError(f"{counted(count, 'head')} to remove of {len(left)}; ask for 1 to {len(left)}")
    judged = Judged.of(store, classes, truths)
    sign = 1 if order == "least" else -1
    removed: list[Head] = []
    correct: list[int] = []
    before = 0
    for step in range(count):
        found = sweep(judged, left, removed)
        if not step:
            before = int(found.before.sum())
        right = found.correct()
        best = int(np.lexsort((sign * found.margin_loss, -sign * right))[0])
        removed.append(left.pop(best))
        correct.append(int(right[best]))
        on_progress(Progress("removed heads", step + 1, count))
    return GreedyRemoval(order, tuple(removed), len(judged.images), before, np.array(correct, np.int64))
