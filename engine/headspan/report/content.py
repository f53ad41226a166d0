"""What the report shows: the heads with their numbers beside chance, their pictures, and the facts about the run.

These classes hold plain values. `describe` and `pictures` fill them, `page` makes HTML of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headspan.features.uses.in_words import UseInWords
from headspan.report.described_head import DescribedHead, Scores
from headspan.report.describing import ComparedRun, ShownDescriptions
from headspan.report.features import ShownFeatures
from headspan.report.pruning import PrunedStudy
from headspan.shards.samples import BadImage
from headspan.spans.nulls import HeadsAbove
from headspan.world.checks import GroundTruth


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
    # The layers whose heads are described, and the heads; both are empty without a TEXTSPAN run.
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
    # Saved scores of features, and the names of further runs.
    features: tuple[ShownFeatures, ...] = ()
    more_features: tuple[str, ...] = ()
    # Saved results of what features are used for, by the name of their run.
    uses: Mapping[str, UseInWords] = field(default_factory=dict)
    # Descriptions of classes, and all runs of them side by side.
    descriptions: tuple[ShownDescriptions, ...] = ()
    described_runs: tuple[ComparedRun, ...] = ()

    @property
    def has_chance(self) -> bool:
        """Whether the run recorded what chance explains."""
        return self.above is not None

    @property
    def has_magnitudes(self) -> bool:
        """Whether the heads' magnitudes are known."""
        return any(head.variance_share is not None for head in self.heads)
