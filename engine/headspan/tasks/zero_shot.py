"""Zero-shot classification on a store: image embeddings compared with one vector for each class.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021: a
class's vector is the mean of its prompts' unit vectors, normalised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError, counted, shortened
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.texts.vectors import text_vectors

# A set of classes: the name of each, with its prompts.
Prompts = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, repr=False)
class Classes:
    """Names of classes, and the unit vector of each."""

    names: tuple[str, ...]
    vectors: Float32[np.ndarray, "class joint"]

    def __repr__(self) -> str:
        return f"Classes({len(self.names)}: {shortened(', '.join(self.names), 60)})"

    def name(self, embeddings: Float[np.ndarray, "images joint"]) -> list[str]:
        """The class nearest to each embedding. Embeddings need not be normalised."""
        return [self.names[pick] for pick in (embeddings @ self.vectors.T).argmax(axis=1).tolist()]


def embed_classes(
    store: Store,
    sets: Mapping[str, Prompts],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> dict[str, Classes]:
    """The classes of every set, by the set's name, as in `{"pet": {"cat": ["a cat", "cats"], "dog": ["a dog"]}}`.

    All prompts are embedded at once; the store is not changed. `weights` is as in `text_vectors`. Raises SettingsError
    if a set has no classes or a class has no prompts, and the errors of `text_vectors`.
    """
    for name, prompts in sets.items():
        empty = [each for each, texts in prompts.items() if not texts]
        if empty or not prompts:
            missing = f"class {empty[0]!r} has no prompt" if empty else "there are no classes"
            raise SettingsError(f"classes of {name!r}: {missing}; give each class a list of prompts")
    every = [text for prompts in sets.values() for texts in prompts.values() for text in texts]
    vectors = iter(text_vectors(store, every, on_progress, weights=weights))
    found = {}
    for name, prompts in sets.items():
        means = np.stack([np.mean([next(vectors) for _ in texts], axis=0) for texts in prompts.values()])
        found[name] = Classes(tuple(prompts), means / np.linalg.norm(means, axis=1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How often classes were named correctly, over images whose true class is known."""

    # Share of images named correctly.
    share: float
    # The share if the most common class were named for every image.
    chance: float
    images: int


def accuracy(named: Sequence[str], truths: Sequence[str | None]) -> Accuracy:
    """Compare named classes with true ones, one for each image; images whose truth is None are left out.

    Raises SettingsError if no image has a truth.
    """
    pairs = [(name, truth) for name, truth in zip(named, truths, strict=True) if truth is not None]
    if not pairs:
        raise SettingsError(f"none of {counted(len(truths), 'image')} has a true class; give at least one")
    right = sum(name == truth for name, truth in pairs)
    _, counts = np.unique([truth for _, truth in pairs], return_counts=True)
    return Accuracy(right / len(pairs), int(counts.max()) / len(pairs), len(pairs))
