"""Answers about one image, stored or dropped in."""

from __future__ import annotations

from typing import Any

from headspan.web.answers.common import Answer, HeadName, Hit, Number


class Upload(Answer):
    """A dropped-in image. Its id stands where addresses name an image."""

    id: str
    width: int
    height: int


class Seen(Answer):
    """The part of a picture that the model sees, as fractions of the picture's width and height.

    It may reach beyond the picture (below 0 or above 1) where the model sees padding.
    """

    left: float
    top: float
    right: float
    bottom: float


class ImageAnswer(Answer):
    """An image: where it comes from, and what is known of it."""

    store: str
    # The row as text for a stored image, or the id of a dropped-in one.
    id: str
    row: int | None
    key: str
    caption: str | None
    label: int | None
    class_name: str | None
    # The sample's further metadata.
    metadata: dict[str, Any]
    shard: str | None
    member: str | None
    # Size of the picture as it is served, and the part that the model sees; null if it cannot be read.
    width: int | None
    height: int | None
    seen: Seen | None
    # Why the picture cannot be read: one sentence that says what to do.
    missing: str | None
    # Whether maps of this image need the model's process.
    maps_need_model: bool


class Bar(Answer):
    """What one component adds to the cosine of an image and a text."""

    # The head's name, or "initial state", "MLP of layer 3", "layers that are not stored", ...
    name: str
    layer: int | None
    head: int | None
    label: str | None
    value: float
    # The mean over all images of the store, so that a bar can be read as more or less than usual; null where unknown.
    mean: Number


class Bars(Answer):
    """Every component's part of the cosine of an image and a text. `bars` sum to `cosine`."""

    store: str
    id: str
    text: str
    cut: str | None
    cosine: float
    # The sum of the bars, in float64, and the part of it that is one bar for everything the store does not hold.
    sum: float
    remainder: float
    bars: list[Bar]


class Map(Answer):
    """A map of a text over the patch grid, row by row: what each patch adds to the cosine through the heads."""

    text: str
    against: str | None
    values: list[list[float]]
    total: float


class Maps(Answer):
    """Maps of texts over an image. The page colours, thresholds and subtracts them without further requests."""

    store: str
    id: str
    rows: int
    columns: int
    through: str
    heads: list[HeadName]
    maps: list[Map]
    # The value of full colour: 99 % of all patches of all maps are nearer to zero.
    full: float
    # "store" if the store holds patches, "model" if the model computed them.
    source: str
    notices: list[str]


class ZeroShot(Answer):
    """An image's cosine with a text, and its probability among the texts at CLIP's logit scale of 100."""

    text: str
    cosine: float
    probability: float


class Neighbours(Answer):
    """The images nearest to an image or a text through some heads, or through the whole embedding."""

    store: str
    query: str
    # "embedding", "L22.H13", "label:colors", "random:colors:0".
    through: str
    title: str
    heads: list[HeadName] | None
    hits: list[Hit]
    notices: list[str]
