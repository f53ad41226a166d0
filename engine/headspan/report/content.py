"""What the report shows: the heads with their numbers beside chance, their pictures, and the facts about the run.

These classes hold plain values. `describe` and `pictures` fill them, `page` makes HTML of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headspan.concepts.labels import LABELLED_TEXTS
from headspan.concepts.nulls import LEVEL
from headspan.head_names import head_name
from headspan.report.pruning import PrunedStudy
from headspan.shards.samples import BadImage
from headspan.spans.nulls import Chance, HeadsAbove
from headspan.world.checks import GroundTruth

# A head with less than this part of the average head's share of the variance has a low magnitude.
LOW_MAGNITUDE = 0.1


@dataclass(frozen=True, slots=True)
class Share:
    """The share of the variance of a head's contributions that its first `texts` texts explain."""

    texts: int
    explained: float
    # None if the run recorded no chance.
    chance: Chance | None = None


@dataclass(frozen=True, slots=True)
class DescribedHead:
    """One head's numbers, label and first texts, each text with whether it is consistent with the label."""

    layer: int
    head: int
    # After 1, 5, 20 and all texts, as far as the run has them.
    shares: tuple[Share, ...]
    texts: tuple[tuple[str, bool | None], ...]
    # Label, CCS and its group; None without labels.
    label: str | None = None
    score: int | None = None
    group: str | None = None
    # The probability of such a score by chance, None if it is not known; and whether the label beats chance.
    score_p: float | None = None
    labelled: bool = True
    # Shares of the embeddings' variance and of their mean squared length.
    variance_share: float | None = None
    squared_length_share: float | None = None
    low_magnitude: bool = False
    # Effective number of dimensions of the contributions, and the share of the first five texts that a bootstrap keeps.
    effective_rank: float | None = None
    stability: float | None = None

    @property
    def name(self) -> str:
        """The name in the field's notation, such as `L22.H13`."""
        return head_name(self.layer, self.head)

    @property
    def first(self) -> Share:
        """The share after five texts, or after fewer if the run has no more."""
        return max((share for share in self.shares if share.texts <= LABELLED_TEXTS), key=lambda share: share.texts)

    @property
    def no_effect(self) -> bool:
        """Whether chance gives what the first texts explain more often than LEVEL."""
        return self.first.chance is not None and not self.first.chance.p <= LEVEL

    @property
    def weak(self) -> bool:
        """Whether a label says little about the model: the texts have no effect, or the head hardly matters."""
        return self.no_effect or self.low_magnitude

    @property
    def rank(self) -> tuple[float, ...]:
        """What orders heads, strongest first: excess over chance, else CCS and the share explained."""
        explained = -math.inf if math.isnan(self.first.explained) else self.first.explained
        leading = (self.first.chance.excess,) if self.first.chance else (float(self.score or 0), explained)
        return (*(-value for value in leading), float(self.layer), float(self.head))


@dataclass(frozen=True, slots=True)
class MapScale:
    """The scale of a head's maps, in standard deviations over the images and patches of a sample of images."""

    # One standard deviation of a patch's contribution to the dot product.
    deviation: float
    # The number of standard deviations that 95 % of the sample's patches stay within, and that of full colour.
    threshold: float
    full: float
    images: int


@dataclass(frozen=True, slots=True)
class Shot:
    """An image in a head's section."""

    key: str
    caption: str | None
    # The dot product of the head's first text and contribution, and its distance from the mean over all images in
    # standard deviations.
    score: float
    deviations: float
    # The image's place among the page's pictures; None if it could not be read.
    picture: int | None = None
    # The map as an encoded picture of one pixel for each patch, and the share of its patches that have a colour.
    map: bytes | None = None
    coloured: float | None = None
    # Other heads whose sections show the image.
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A head's section: images that respond most and least to its first text, and images drawn at random."""

    head: DescribedHead
    most: tuple[Shot, ...] = ()
    least: tuple[Shot, ...] = ()
    random: tuple[Shot, ...] = ()
    scale: MapScale | None = None
    # Decimal places of the scores, which give their standard deviation two digits.
    decimals: int = 3
    # Whether it is among the strongest heads.
    best: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """The summaries of the Concept Consistency Scores, beside what chance gives."""

    at_k: list[float]
    groups: dict[str, int]
    ccr: float
    # The same by chance, and the expected number of heads whose score beats chance; None if it is not known.
    expected_at_k: tuple[float, ...] | None = None
    expected_groups: dict[str, float] | None = None
    expected_ccr: float | None = None
    expected_labelled: float | None = None
    # Whether chance includes rotated pools.
    rotated: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """Everything that the page shows."""

    # Shown above everything else.
    notices: list[str]
    model: str
    weights: str
    # Names of the shards, the day on which the report was written, and the command that writes it.
    data_set: str
    date: str
    command: str
    facts: list[tuple[str, str]]
    images: int
    # The layers whose heads are described.
    layers: tuple[int, ...]
    heads: list[DescribedHead]
    texts_per_head: int
    # How many heads explain more than chance, and how many would without meaning; None if the run recorded no chance.
    above: HeadsAbove | None
    # None without labels; `why_no_scores` then says what to do.
    scores: Scores | None
    why_no_scores: str
    # None unless the images are of the image world.
    truth: GroundTruth | None
    bad: list[BadImage]
    sections: list[Section]
    # Encoded pictures, and the size in pixels of the model's input, height and width.
    pictures: list[bytes]
    input_size: tuple[int, int]
    # The reason for every image that could not be read, by row.
    missing: dict[int, str] = field(default_factory=dict)
    has_maps: bool = False
    # Saved studies of which heads matter.
    studies: tuple[PrunedStudy, ...] = ()

    @property
    def has_chance(self) -> bool:
        """Whether the run recorded what chance explains."""
        return self.above is not None

    @property
    def has_magnitudes(self) -> bool:
        """Whether the heads' magnitudes are known."""
        return any(head.variance_share is not None for head in self.heads)
