"""Zero-shot classification on a store: image embeddings against one vector a class.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021: a
class's vector is the mean of its prompts' unit vectors, made a unit vector again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.store.reader import Store
from headspan.texts.pool import Pool, text_vectors

# A set of classes by name, each with its prompts.
Prompts = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Classes:
    """Names of classes, and the unit vector of each."""

    names: tuple[str, ...]
    vectors: Float32[np.ndarray, "class joint"]

    def name(self, embeddings: Float[np.ndarray, "images joint"]) -> list[str]:
        """The class nearest to each embedding; an embedding's length does not matter."""
        return [self.names[pick] for pick in (embeddings @ self.vectors.T).argmax(axis=1).tolist()]


def embed_classes(
    store: Store,
    name: str,
    sets: Mapping[str, Prompts],
    on_progress: Listener = ignore,
    *,
    weights: str | Path | None = None,
) -> dict[str, Classes]:
    """The classes of every set; all prompts are kept in the store as the pool `name`.

    `weights` says where the model's weights lie now, as for `text_vectors`.
    Raises SettingsError for a set without classes, or a class without prompts.
    """
    for factor, prompts in sets.items():
        empty = [each for each, ways in prompts.items() if not ways]
        if empty or not prompts:
            missing = f"class {empty[0]!r} has no prompt" if empty else "there is no class"
            raise SettingsError(f"classes of {factor!r}: {missing}; give each class a list of prompts")
    texts = [text for prompts in sets.values() for ways in prompts.values() for text in ways]
    vectors = iter(text_vectors(store, Pool(name, tuple(texts)), on_progress, weights=weights))
    found = {}
    for factor, prompts in sets.items():
        means = np.stack([np.mean([next(vectors) for _ in ways], axis=0) for ways in prompts.values()])
        found[factor] = Classes(tuple(prompts), means / np.linalg.norm(means, axis=1, keepdims=True))
    return found


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of images named right, of how many, and what naming the commonest class everywhere would give."""

    share: float
    chance: float
    images: int


def accuracy(named: Sequence[str], truths: Sequence[str | None]) -> Accuracy:
    """Over images that have a truth."""
    pairs = [(name, truth) for name, truth in zip(named, truths, strict=True) if truth is not None]
    right = sum(name == truth for name, truth in pairs)
    _, counts = np.unique([truth for _, truth in pairs], return_counts=True)
    return Accuracy(right / len(pairs), int(counts.max()) / len(pairs), len(pairs))
