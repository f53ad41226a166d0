"""Sparse features of image and text embeddings, and how much each belongs to images, texts, or both.

Names are imported from their modules when they are first used, so that reading scores does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headspan.features.compared import ComparedDictionaries, compare_dictionaries
    from headspan.features.most_active import TopCaption, TopImage, TopSamples, top_samples
    from headspan.features.naming import name_features
    from headspan.features.pairs.block import Block
    from headspan.features.pairs.image_vectors import directions_in_joint
    from headspan.features.pairs.opening import open_pairs
    from headspan.features.pairs.pairs import Pairs
    from headspan.features.pairs.space import Space
    from headspan.features.saved import read_scores, save_scores
    from headspan.features.scores.over_pairs import score_pairs
    from headspan.features.scores.result import FeatureScores
    from headspan.features.scores.splice import Splice, splice
    from headspan.features.scores.stability import Stability, stability
    from headspan.features.scoring import score
    from headspan.features.spliced import SplicedImages, splice_images
    from headspan.features.strips import feature_strips
    from headspan.features.table import FeatureTable, feature_table
    from headspan.features.training.dictionary import Dictionary, open_dictionary
    from headspan.features.training.train import train
    from headspan.features.uses.attack import attack
    from headspan.features.uses.attack_result import AttackStudy
    from headspan.features.uses.bias import probe_bias
    from headspan.features.uses.bias_result import BiasProbe
    from headspan.features.uses.edit import edit
    from headspan.features.uses.edit_result import EditedImage, EditStudy
    from headspan.features.uses.edit_study import edit_study
    from headspan.features.uses.saved import read_use
    from headspan.features.uses.unclip import to_unclip

# The module of each name.
_MODULES = {
    "AttackStudy": "uses.attack_result",
    "BiasProbe": "uses.bias_result",
    "Block": "pairs.block",
    "ComparedDictionaries": "compared",
    "Dictionary": "training.dictionary",
    "EditStudy": "uses.edit_result",
    "EditedImage": "uses.edit_result",
    "FeatureScores": "scores.result",
    "FeatureTable": "table",
    "Pairs": "pairs.pairs",
    "Space": "pairs.space",
    "Splice": "scores.splice",
    "SplicedImages": "spliced",
    "Stability": "scores.stability",
    "TopCaption": "most_active",
    "TopImage": "most_active",
    "TopSamples": "most_active",
    "attack": "uses.attack",
    "compare_dictionaries": "compared",
    "directions_in_joint": "pairs.image_vectors",
    "edit": "uses.edit",
    "edit_study": "uses.edit_study",
    "feature_strips": "strips",
    "feature_table": "table",
    "name_features": "naming",
    "open_dictionary": "training.dictionary",
    "open_pairs": "pairs.opening",
    "probe_bias": "uses.bias",
    "read_scores": "saved",
    "read_use": "uses.saved",
    "save_scores": "saved",
    "score": "scoring",
    "score_pairs": "scores.over_pairs",
    "splice": "scores.splice",
    "splice_images": "spliced",
    "stability": "scores.stability",
    "to_unclip": "uses.unclip",
    "top_samples": "most_active",
    "train": "training.train",
}

__all__ = [
    "AttackStudy",
    "BiasProbe",
    "Block",
    "ComparedDictionaries",
    "Dictionary",
    "EditStudy",
    "EditedImage",
    "FeatureScores",
    "FeatureTable",
    "Pairs",
    "Space",
    "Splice",
    "SplicedImages",
    "Stability",
    "TopCaption",
    "TopImage",
    "TopSamples",
    "attack",
    "compare_dictionaries",
    "directions_in_joint",
    "edit",
    "edit_study",
    "feature_strips",
    "feature_table",
    "name_features",
    "open_dictionary",
    "open_pairs",
    "probe_bias",
    "read_scores",
    "read_use",
    "save_scores",
    "score",
    "score_pairs",
    "splice",
    "splice_images",
    "stability",
    "to_unclip",
    "top_samples",
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
