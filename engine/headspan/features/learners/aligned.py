"""Aligned: codes of matching pursuit, or TopK, that are penalised where those of a pair are unlike.

Formula: SAE-A of "Cross-Modal Redundancy and the Geometry of Vision-Language Embeddings" (arXiv 2602.06218): minus the
cosine of the two codes. Its public code leaves the strongest feature of each side out of both codes first, which is
`mask_strongest`. Settings: matching pursuit of 20 steps, and the published weight for CLIP ViT-B.
"""

from __future__ import annotations

from typing import ClassVar

from headspan.features.learners.active import Active
from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.dictionary_learner import DictionaryLearner, Terms
from headspan.features.learners.kinds import ALIGNED, TOPK
from headspan.features.learners.learner import Learner
from headspan.features.learners.matching_pursuit import MatchingPursuit
from headspan.features.learners.rows import cosines, pair_of
from headspan.features.learners.settings import AlignedSettings, Settings


class Aligned(DictionaryLearner):
    """The penalty, for codes of either kind. `Aligned.made` chooses the kind."""

    kind: ClassVar[str] = ALIGNED
    settings_type: ClassVar[type[Settings]] = AlignedSettings

    def __init__(self, settings: AlignedSettings) -> None:
        super().__init__(settings)
        self.align_weight, self.mask_strongest = settings.align_weight, settings.mask_strongest

    @classmethod
    def made(cls, settings: AlignedSettings) -> Learner:
        return AlignedTopK(settings) if settings.code == TOPK else AlignedPursuit(settings)

    def pair_terms(self, codes: Active, pairs: int) -> Terms:
        image, text = pair_of(codes, pairs)
        if self.mask_strongest:
            strongest = image.strongest(), text.strongest()
            for feature in strongest:
                image, text = image.without(feature), text.without(feature)
        return {"align": -self.align_weight * cosines(image, text).mean()}


class AlignedPursuit(Aligned, MatchingPursuit):
    """Codes of matching pursuit."""


class AlignedTopK(Aligned, Autoencoder):
    """Codes of TopK."""
