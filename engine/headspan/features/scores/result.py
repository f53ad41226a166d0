"""Scores of all features of a dictionary over the pairs of a store."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int8, Int64

from headspan.features.pairs.space import Space
from headspan.store.lineage import Lineage

# Classes of features.
UNDECIDED, TEXT_DOMINANT, CROSS_MODAL, IMAGE_DOMINANT = -1, 0, 1, 2
CLASS_NAMES = {
    IMAGE_DOMINANT: "image-dominant",
    CROSS_MODAL: "cross-modal",
    TEXT_DOMINANT: "text-dominant",
    UNDECIDED: "undecided",
}
# The other way round, in the order in which classes are shown.
CLASSES = {name: number for number, name in CLASS_NAMES.items()}


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FeatureScores:
    """Scores by feature. Numbers that a feature does not have, such as MDS where it is never active, are NaN."""

    run: str
    # The dictionary: its folder, the checksum of its weights, its learner, and the learner's settings.
    dictionary: str
    dictionary_sha256: str
    learner: str
    pairs: int
    # Pairs in which the image's code, the text's, or one of both is above 0.
    image_active: Int64[np.ndarray, " feature"]
    text_active: Int64[np.ndarray, " feature"]
    active: Int64[np.ndarray, " feature"]
    # Mean over all pairs of the code and of its square.
    image_mean: Float64[np.ndarray, " feature"]
    text_mean: Float64[np.ndarray, " feature"]
    image_square: Float64[np.ndarray, " feature"]
    text_square: Float64[np.ndarray, " feature"]
    # Modality Dominance Score and energy score, with the ends of their 95 % bootstrap intervals, and the same scores
    # with captions shuffled.
    mds: Float64[np.ndarray, " feature"]
    mds_interval: Float64[np.ndarray, "feature 2"]
    energy: Float64[np.ndarray, " feature"]
    energy_interval: Float64[np.ndarray, "feature 2"]
    shuffled_mds: Float64[np.ndarray, " feature"]
    shuffled_energy: Float64[np.ndarray, " feature"]
    # UNDECIDED, TEXT_DOMINANT, CROSS_MODAL or IMAGE_DOMINANT, by mean ± std of MDS, and by the intervals.
    class_by_spread: Int8[np.ndarray, " feature"]
    class_by_interval: Int8[np.ndarray, " feature"]
    # The direction of each feature in the space: its decoder row, or the mean of vectors weighted by its code.
    directions: Float32[np.ndarray, "feature width"]
    # Images and captions with the largest codes, the largest first: the image's index, or that of the image whose
    # caption it is (-1 where there are fewer), and the code.
    top_images: Int64[np.ndarray, "feature top"]
    top_image_codes: Float32[np.ndarray, "feature top"]
    top_captions: Int64[np.ndarray, "feature top"]
    top_caption_codes: Float32[np.ndarray, "feature top"]
    # Monosemanticity in closed form over images, and across sides.
    monosemanticity: Float64[np.ndarray, " feature"]
    cross_monosemanticity: Float64[np.ndarray, " feature"]
    # EmbSim of the most active images, for each number of images in `similarity_sizes`.
    similarity_sizes: tuple[int, ...]
    similarity: Float64[np.ndarray, "feature size"]
    # Scores of the dictionary as a whole, by name: R², FVU, L0, dead share, cosine of each side, WinRate and its p.
    quality: dict[str, float] = field(default_factory=dict)
    # Texts of a pool nearest to each feature's direction, with their cosines; empty until it is named.
    names: tuple[tuple[str, ...], ...] = ()
    name_cosines: Float32[np.ndarray, "feature name"] | None = None
    # How often a random direction, and a random mixture of features, is as near to a text of the pool as the feature
    # is, and the mean and 95 % range of their best cosines.
    name_p: Float64[np.ndarray, " feature"] | None = None
    name_mixture_p: Float64[np.ndarray, " feature"] | None = None
    name_chance: dict[str, float] = field(default_factory=dict)
    # The weight of coherence with which texts were chosen; None for the nearest texts.
    name_coherence: float | None = None
    # The pool of the names, as the store calls it (`texts/<pool>`); None until the features are named.
    name_pool: str | None = None
    # The space that the features are of, with its heads if it has some; None where that is not recorded.
    space: Space | None = None
    # Pairs in which one of both sides is active, with captions shuffled.
    shuffled_active: Int64[np.ndarray, " feature"] | None = None
    # The numbers of the top captions among the distinct captions of the store, as blocks of pairs have them.
    top_caption_numbers: Int64[np.ndarray, "feature top"] | None = None
    # EmbSim of the captions with the largest codes; None where the judge has no text tower.
    caption_similarity: Float64[np.ndarray, "feature size"] | None = None
    # The encoder by which samples are alike in EmbSim and monosemanticity, and the seed of the order of pairs.
    judge: str = ""
    seed: int = 0
    # Identifies a saved result, and says what it was made from.
    lineage: Lineage | None = None

    @property
    def older(self) -> str | None:
        """The run that this one was made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None
