"""The results of a ground-truth check. Shares are fractions from 0 to 1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headspan.store.head_space import Head
from headspan.store.lineage import Lineage
from headspan.tasks.zero_shot import Accuracy
from headspan.world.compared import Compared, Draws

# The concepts of the world's text pool, and the factor that each is scored by.
FACTOR_OF = {
    "colours": "colour",
    "shapes": "shape",
    "textures": "texture",
    "sizes": "size",
    "counting": "count",
    "positions": "position",
    "styles": "style",
    "backgrounds": "background_colour",
}


@dataclass(frozen=True, slots=True)
class NeighbourCheck:
    """Precision@10: of an image's ten nearest images, the share with its value of a concept's factor."""

    concept: str
    # The heads labelled with the concept.
    heads: tuple[Head, ...]
    through_heads: float
    # The same score through all heads of the model.
    through_all: float
    # The probability that another image, drawn at random, has the query's value.
    chance: float
    # Number of images that have a value of the factor; all are queries and candidates.
    queries: int
    # The same score by the cosines of whole embeddings, and through as many heads without the label; None in results of
    # earlier versions.
    through_embedding: float | None = None
    through_others: Draws | None = None


@dataclass(frozen=True, slots=True)
class MapCheck:
    """Maps of a text such as "a red ring" over images of red rings; means over images."""

    images: int
    # Share of the map's positive mass inside the objects' mask.
    mass_inside: float
    # Share of the image that the mask covers, which is chance for both scores.
    area: float
    average_precision: float


@dataclass(frozen=True, slots=True)
class TextMapCheck:
    """Maps of a concept's values, such as "a red shape", against the pixels that have the value; means over images.

    Those are the pixels of all objects that have the value, or the background. Chance is what the map of another image
    scores, which knows where objects usually are.
    """

    concept: str
    heads: tuple[Head, ...]
    images: int
    # Share of the image that the pixels cover.
    area: float
    # Area under the ROC curve of the pixels.
    auc: Compared
    # Intersection over union with the pixels above the mean of the map's positive part.
    overlap: Compared
    # What a map of the exact share of each patch inside scores, which the size of patches limits.
    exact_auc: float
    exact_overlap: float


@dataclass(frozen=True, slots=True)
class ContrastCheck:
    """Scenes of two different objects: the map of the first one's text minus the map of the second one's."""

    # A concept, whose values name the objects, or `descriptions`, of colour and shape.
    concept: str
    heads: tuple[Head, ...]
    scenes: int
    # Share of scenes in which the contrast is positive on the first object and negative on the second, by the mean over
    # its pixels. Chance is half of the share in which the two signs differ, whichever is positive.
    right: Compared
    # Share of scenes in which the contrast is larger on the first object.
    ordered: Compared


@dataclass(frozen=True, slots=True)
class RankingCheck:
    """Rankings of all heads for a factor, against the heads whose mean ablation hurts the factor's accuracy.

    A head hurts if 97.5 % of bootstrap samples of the images lose accuracy, and if the whole model is better than
    chance in as many. The other comparison is with the
    loss of margin: the mean loss of the true value's score minus the best other value's.
    """

    factor: str
    # All heads that were ranked, and those that hurt.
    heads: int
    hurting: tuple[Head, ...]
    # By the ranking's name: the probability that a head that hurts is ranked above one that does not (ties count half;
    # chance is 0.5; None if no head hurts), and Spearman's correlation with the loss of margin.
    auc: dict[str, float | None]
    correlation: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Ablation:
    """Zero-shot accuracy of every factor with the heads of one concept replaced by their means."""

    concept: str
    heads: tuple[Head, ...]
    accuracies: dict[str, float]

    def losses(self, zero_shot: Mapping[str, Accuracy]) -> dict[str, float]:
        """Accuracy lost of every factor: that of the whole model minus that without the heads."""
        return {factor: zero_shot[factor].share - share for factor, share in self.accuracies.items()}

    def own_and_other_loss(self, zero_shot: Mapping[str, Accuracy]) -> tuple[float, float]:
        """The loss of the concept's own factor, and the largest loss among the factors of other concepts (NaN if none).

        Texts about backgrounds name their kind or their colour. The kind is therefore left out of the other factors of
        `backgrounds`, which is scored by the colour.
        """
        losses = self.losses(zero_shot)
        own = losses.pop(FACTOR_OF[self.concept])
        if self.concept == "backgrounds":
            losses.pop("background", None)
        return own, max(losses.values(), default=math.nan)


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """What the analyses of one CCS run found, scored against the known scenes."""

    run: str
    # Every factor's zero-shot accuracy.
    zero_shot: dict[str, Accuracy]
    # Number of heads with a CCS of 5, by the concept that they are labelled with.
    high_heads: dict[str, int]
    neighbours: tuple[NeighbourCheck, ...]
    maps: MapCheck
    ablations: tuple[Ablation, ...]
    # The model and its weights, in words.
    about: str = ""
    # The same scores of other models over the same scenes, by name.
    controls: dict[str, GroundTruth] = field(default_factory=dict)
    # The expected number of heads with a CCS of 5 by chance, by concept; empty if it is not known. It is computed on
    # reading and not stored.
    high_by_chance: dict[str, float] = field(default_factory=dict, compare=False)
    # Maps of single values, contrasts of two objects, and rankings of heads; empty in results of earlier versions.
    text_maps: tuple[TextMapCheck, ...] = field(default=(), kw_only=True)
    contrasts: tuple[ContrastCheck, ...] = field(default=(), kw_only=True)
    rankings: tuple[RankingCheck, ...] = field(default=(), kw_only=True)
    # Identifies the result, and says what it was made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)

    @property
    def older(self) -> str | None:
        """The run that the result was made from, if it was replaced or removed since; else None."""
        return self.lineage.older if self.lineage else None
