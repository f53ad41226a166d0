"""Models and embeddings without some heads, and what that changes in tasks."""

from headspan.prune.ablation import direct_effect, mean_ablated
from headspan.prune.greedy import GreedyRemoval, greedy
from headspan.prune.reconstruction import Reconstruction, reconstruction
from headspan.prune.single_heads import SingleHeads, single_heads
from headspan.tasks.zero_shot import Accuracy, Classes, accuracy, embed_classes

__all__ = [
    "Accuracy",
    "Classes",
    "GreedyRemoval",
    "Reconstruction",
    "SingleHeads",
    "accuracy",
    "direct_effect",
    "embed_classes",
    "greedy",
    "mean_ablated",
    "reconstruction",
    "single_heads",
]
