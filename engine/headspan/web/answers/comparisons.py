"""Answers that compare two stores of different models on the same images."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number
from headspan.web.answers.images import Neighbours


class ComparedLabel(Answer):
    """A label in both stores: the heads that have it, their mean CCS, and their share of the variance."""

    label: str
    heads: tuple[list[HeadName], list[HeadName]]
    ccs: tuple[Number, Number]
    variance_share: tuple[Number, Number]


class SharedNeighbours(Answer):
    """How far both stores agree on one image's neighbours, and its neighbours in each."""

    key: str
    rows: tuple[int, int]
    through: tuple[str, str]
    neighbours: tuple[Neighbours, Neighbours]
    # Keys that are neighbours in both, and how many chance would give.
    shared: list[str]
    chance: Number


class Comparison(Answer):
    """Two stores side by side."""

    stores: tuple[str, str]
    # Images with the same key in both.
    shared_images: int
    labels: list[ComparedLabel]
    ccs_counts: tuple[list[int], list[int]] | None
    notices: list[str]
