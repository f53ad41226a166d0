"""Models and embeddings without some heads, and what that changes in tasks."""

from headspan.prune.ablation import mean_ablated
from headspan.prune.total_effect import total_effect
from headspan.tasks.zero_shot import Accuracy, Classes, accuracy, embed_classes

__all__ = ["Accuracy", "Classes", "accuracy", "embed_classes", "mean_ablated", "total_effect"]
