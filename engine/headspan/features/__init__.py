"""Sparse features of image and text embeddings, and how much each belongs to images, texts, or both.

Names are imported from their modules when they are first used, so that reading scores does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headspan.features.pairs.block import Block
    from headspan.features.pairs.image_vectors import directions_in_joint
    from headspan.features.pairs.opening import open_pairs
    from headspan.features.pairs.pairs import Pairs
    from headspan.features.pairs.space import Space
    from headspan.features.training.dictionary import Dictionary, open_dictionary
    from headspan.features.training.train import train

# The module of each name.
_MODULES = {
    "Block": "pairs.block",
    "Pairs": "pairs.pairs",
    "Space": "pairs.space",
    "Dictionary": "training.dictionary",
    "directions_in_joint": "pairs.image_vectors",
    "open_dictionary": "training.dictionary",
    "open_pairs": "pairs.opening",
    "train": "training.train",
}

__all__ = [
    "Block",
    "Dictionary",
    "Pairs",
    "Space",
    "directions_in_joint",
    "open_dictionary",
    "open_pairs",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'headspan.features' has no attribute {name!r}")
    found = getattr(import_module(f"headspan.features.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return __all__
