"""Reward texts by a store: one pass of the text tower and one product with the vector of a class.

The model is loaded once. Vectors of texts are kept, since a language model writes many texts more than once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64

from headspan.describe.asked.classes import DescribedClasses
from headspan.describe.rewards.class_vectors import class_vectors
from headspan.describe.rewards.target import Target
from headspan.events import Listener, ignore
from headspan.model.load import LoadedModel, load_stored_model
from headspan.model.text import encode_texts
from headspan.store.reader import Store

# Vectors of texts that are kept; at 1,024 numbers they take 400 MB.
_KEPT = 100_000


class Texts:
    """Unit vectors of texts in the joint space of a store's model, and which of them its context cuts."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self._kept: OrderedDict[str, tuple[Float32[np.ndarray, " joint"], bool]] = OrderedDict()

    def vectors(self, texts: Sequence[str]) -> Float32[np.ndarray, "text joint"]:
        """The vector of every text; only texts that were not asked for before are embedded."""
        return np.stack([vector for vector, _ in self._entries(texts)])

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text fills the model's context, so that its end may be cut."""
        return [cut for _, cut in self._entries(texts)]

    def forget(self) -> None:
        """Forget all vectors, so that the next ones depend on the texts that are asked for alone.

        A vector's last bits depend on the texts that were embedded with it, and so on those that were kept before.
        """
        self._kept.clear()

    def _entries(self, texts: Sequence[str]) -> list[tuple[Float32[np.ndarray, " joint"], bool]]:
        found = {text: self._kept[text] for text in dict.fromkeys(texts) if text in self._kept}
        if missing := [text for text in dict.fromkeys(texts) if text not in found]:
            cut: list[str] = []
            vectors = encode_texts(self.model, missing, on_cut=cut.extend)
            full = {*cut}
            found |= {text: (vector, text in full) for text, vector in zip(missing, vectors, strict=True)}
        for text, entry in found.items():
            self._kept[text] = entry
            self._kept.move_to_end(text)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return [found[text] for text in texts]


class Reward:
    """The reward of texts for the classes of a store, as a target says.

    `scale` is the factor of rewards, and `vectors` `[class, joint]` are those of `class_vectors`. Raises ModelError if
    the store's model cannot be loaded, and the errors of `class_vectors`.
    """

    def __init__(
        self,
        store: Store,
        classes: DescribedClasses,
        target: Target | None = None,
        *,
        weights: str | Path | None = None,
        on_progress: Listener = ignore,
    ) -> None:
        self.store = store
        self.classes = classes
        self.target = target or Target()
        self.vectors = class_vectors(store, classes, self.target)
        model = load_stored_model(store.attributes, store.path, weights, on_progress)
        self.texts = Texts(model)
        self.scale = float(model.clip.logit_scale.exp()) if self.target.scale is None else self.target.scale

    def of(self, texts: Sequence[str], classes: Sequence[int]) -> Float64[np.ndarray, " text"]:
        """The reward of every text for the class of the same place."""
        vectors = self.texts.vectors(texts).astype(np.float64)
        found: Float64[np.ndarray, " text"] = self.scale * np.einsum("td,td->t", vectors, self.vectors[[*classes]])
        return found
