"""Embeddings without some heads, and zero-shot classification with what is left."""

from headspan.prune.ablation import mean_ablated
from headspan.prune.zero_shot import Accuracy, Classes, accuracy, embed_classes

__all__ = ["Accuracy", "Classes", "accuracy", "embed_classes", "mean_ablated"]
