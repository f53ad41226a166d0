"""Models and embeddings without some heads, and what that changes in tasks."""

from headspan.prune.choice.groups import HeadGroup, head_group
from headspan.prune.choice.spurious_heads import PUBLISHED_HEADS, SpuriousHeads, spurious_heads
from headspan.prune.direct.ablation import direct_effect, mean_ablated
from headspan.prune.direct.greedy import GreedyRemoval, greedy
from headspan.prune.direct.reconstruction import Reconstruction, reconstruction
from headspan.prune.direct.single_heads import SingleHeads, single_heads
from headspan.prune.studies.concept_specific import Concept, ConceptEffect, concept_effects, concepts_of
from headspan.prune.studies.spurious import SpuriousStudy, SpuriousVariant, spurious_study
from headspan.prune.studies.study import read_study, study
from headspan.prune.studies.study_result import Study
from headspan.prune.total.total_effect import total_effect
from headspan.tasks.zero_shot import Accuracy, Classes, accuracy, embed_classes

__all__ = [
    "PUBLISHED_HEADS",
    "Accuracy",
    "Classes",
    "Concept",
    "ConceptEffect",
    "GreedyRemoval",
    "HeadGroup",
    "Reconstruction",
    "SingleHeads",
    "SpuriousHeads",
    "SpuriousStudy",
    "SpuriousVariant",
    "Study",
    "accuracy",
    "concept_effects",
    "concepts_of",
    "direct_effect",
    "embed_classes",
    "greedy",
    "head_group",
    "mean_ablated",
    "read_study",
    "reconstruction",
    "single_heads",
    "spurious_heads",
    "spurious_study",
    "study",
    "total_effect",
]
