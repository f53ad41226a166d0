"""Answers about one head, and about images seen through it."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Hit, Number
from headspan.web.answers.stores import HeadSummary


class SpanText(Answer):
    """A text of a head's span."""

    text: str
    concept: str | None
    # The share of the head's variance explained by the texts up to this one, and what chance gives for as many.
    explained: Number
    chance: Number
    # What this text adds.
    added: Number
    # Whether the text is consistent with the head's label; null if nobody voted.
    consistent: bool | None
    # Whether each judge thinks so, by the judge's name.
    votes: dict[str, bool | None]


class LikeHead(HeadName):
    """Another head, and how alike the two are."""

    label: str | None
    # Overlap of the two covariances in joint space, 0 to 1: tr(A B) / (‖A‖ ‖B‖).
    overlap: Number


class HeadAnswer(Answer):
    """One head: its texts with every vote, its spectrum, and the heads that are like it."""

    store: str
    summary: HeadSummary
    spans: list[SpanText]
    # Shares of the head's variance along its principal directions, by falling share.
    spectrum: list[Number]
    alike: list[LikeHead]
    # The runs whose features are of this head's coordinates.
    feature_runs: list[str]
    # Runs of descriptions that were rewarded through this head, alone or with others.
    description_runs: list[str]
    notices: list[str]


class Direction(Answer):
    """A singular direction of a head's value-output matrix, and the texts that name it."""

    # The singular value, and the share of the head's variance over the images that lies along the direction.
    strength: Number
    variance_share: Number
    # Texts of either end with their weights.
    texts: list[str]
    weights: list[Number]


class Spectrum(Answer):
    """What a head's weights can write: singular directions of its value-output matrix, named by texts."""

    store: str
    head: HeadName
    directions: list[Direction]


class Extremes(Answer):
    """The images that score highest and lowest along a text through a head."""

    store: str
    head: HeadName
    text: str
    # The text as the model reads it, if it was longer than the model's context and was cut.
    cut: str | None
    top: list[Hit]
    bottom: list[Hit]


class Plane(Answer):
    """The plane of the first two principal directions of a head's contributions, or of the embeddings.

    The points are sent in `parts` parts, each an even sample of all images, at `…/plane/points?part=`. Each part is
    little-endian: the number of points n as uint32, then n rows as uint32, then n × as float32, then n y as float32.
    """

    store: str
    # Null for the embeddings.
    head: HeadName | None
    images: int
    parts: int
    # Shares of the variance along both axes, and the extent of the points: x from, x to, y from, y to.
    shares: tuple[Number, Number]
    extent: tuple[float, float, float, float]
    # Texts at the ends of both axes, where a pool's vectors are known: left, right, bottom, top.
    ends: tuple[str | None, str | None, str | None, str | None]


class Categories(Answer):
    """A colouring of the plane's points: names of categories; code 255 means none of them.

    The codes are sent in the parts of the plane, in the order of its points, at `…/categories/codes?part=`: one uint8
    each. A continuous colouring (by a text's score) has the codes 0 to 254 from `low` to `high`.
    """

    store: str
    by: str
    names: list[str]
    counts: list[int]
    continuous: bool
    low: Number
    high: Number
    parts: int


class Place(Answer):
    """Where one image is in a plane."""

    store: str
    # The row of a stored image, or the id of a dropped-in one.
    id: str
    x: float
    y: float
