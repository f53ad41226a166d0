"""The direct effect of every head alone: zero-shot classification after its mean ablation, beside the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from headspan.errors import SettingsError, counted, percent
from headspan.events import Listener, ignore
from headspan.explore.nearest.similarities import distinct
from headspan.frames import Tabular
from headspan.prune.direct.judged import Judged
from headspan.prune.direct.sweep import Swept, sweep
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.tasks.zero_shot import Classes


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class SingleHeads(Tabular):
    """What the mean ablation of each head alone changes in zero-shot classification.

    Arrays over heads follow `heads`, arrays over images follow `images`.
    """

    heads: tuple[Head, ...]
    # Indices of the images whose class is known, among those that the store shows.
    images: Int64[np.ndarray, " image"]
    swept: Swept

    def __repr__(self) -> str:
        return (
            f"SingleHeads({counted(len(self.heads), 'head')}, {counted(len(self.images), 'image')}, "
            f"{percent(self.accuracy_before)} right with all heads)"
        )

    @property
    def before(self) -> Bool[np.ndarray, " image"]:
        """Which images the whole model classifies correctly."""
        return self.swept.before

    @property
    def accuracy_before(self) -> float:
        """The share of images that the whole model classifies correctly."""
        return float(self.before.mean())

    @property
    def correct(self) -> Int64[np.ndarray, " head"]:
        """How many images are classified correctly without each head."""
        return self.swept.correct()

    @property
    def accuracy(self) -> Float64[np.ndarray, " head"]:
        """The share of images that are classified correctly without each head."""
        return self.correct / len(self.images)

    @property
    def margin_loss(self) -> Float64[np.ndarray, " head"]:
        """The mean over images of the margin that the head gives: the margin of the whole model minus that without it.

        An image's margin is the dot product of its embedding with the vector of its class, minus the largest one with
        the vector of another class. Embeddings are divided by the original `‖embedding‖`.
        """
        return self.swept.margin_loss

    def right(self, layer: int, head: int) -> Bool[np.ndarray, " image"]:
        """Which images are classified correctly without one head. Raises SettingsError if it was not ablated."""
        return self.swept.right(self._at(layer, head))

    def flipped(self, layer: int, head: int) -> tuple[Int64[np.ndarray, " wrong"], Int64[np.ndarray, " right"]]:
        """The images that become wrong without one head, and those that become right: indices in the store.

        Raises SettingsError if the head was not ablated.
        """
        after = self.right(layer, head)
        return self.images[self.before & ~after], self.images[~self.before & after]

    def ranking(self) -> list[Head]:
        """All heads, first the one whose removal costs most: by accuracy, then by mean loss of margin."""
        order = np.lexsort((-self.margin_loss, self.correct))
        return [self.heads[place] for place in order.tolist()]

    def _at(self, layer: int, head: int) -> int:
        if (layer, head) not in self.heads:
            raise SettingsError(f"layer {layer}, head {head}: is not among the {len(self.heads)} heads of this result")
        return self.heads.index((layer, head))

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        flipped = [self.flipped(*head) for head in self.heads]
        return {
            "layer": [layer for layer, _ in self.heads],
            "head": [head for _, head in self.heads],
            "accuracy": self.accuracy.tolist(),
            "accuracy_loss": (self.accuracy_before - self.accuracy).tolist(),
            "became_wrong": [len(wrong) for wrong, _ in flipped],
            "became_right": [len(right) for _, right in flipped],
            "margin_loss": self.margin_loss.tolist(),
        }


def single_heads(
    store: Store,
    classes: Classes,
    truths: Int[np.ndarray, " images"],
    on_progress: Listener = ignore,
    heads: Sequence[Head] | None = None,
) -> SingleHeads:
    """Classify the store's images after the mean ablation of each head alone.

    Nothing is embedded again and the store is not changed. Whether an image is right is exact: it is what float64
    arithmetic on the stored numbers gives, with the first of several best classes named.

    Args:
        store: The store.
        classes: The classes, as `embed_classes` returns them.
        truths: The number of each image's class, for every image that the store shows; -1 where it is not known. These
            images, and images that failed, are left out.
        on_progress: Called with a `headspan.events.Progress` as the work advances.
        heads: The heads, (layer, head); by default all that are stored.

    Raises SettingsError if sizes do not fit, no class is known, or a head is not stored; StoreError if no unit is
    finished.
    """
    chosen = stored_heads(store) if heads is None else distinct(store, heads)
    for layer, head in chosen:
        store.contents.layer_index(layer, head)
    judged = Judged.of(store, classes, truths)
    return SingleHeads(tuple(chosen), judged.images, sweep(judged, chosen, on_progress=on_progress))
