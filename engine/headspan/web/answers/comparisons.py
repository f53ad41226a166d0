"""Answers that compare two stores of different models on the same images."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number
from headspan.web.answers.images import Neighbours


class ComparedLabel(Answer):
    """A label of either store: in each, the heads that have it, their mean CCS, and their shares of the variance.

    The shares of the heads are added up, so they may exceed 1, since contributions correlate.
    """

    label: str
    heads: tuple[list[HeadName], list[HeadName]]
    ccs: tuple[Number, Number]
    variance_share: tuple[Number, Number]


class SharedNeighbours(Answer):
    """How far both stores agree on the neighbours of the image of one key, and its neighbours in each."""

    key: str
    rows: tuple[int, int]
    through: tuple[str, str]
    neighbours: tuple[Neighbours, Neighbours]
    # Keys that are neighbours in both, and how many would be on average if neighbours were drawn at random.
    shared: list[str]
    chance: Number


class Comparison(Answer):
    """Two stores side by side."""

    stores: tuple[str, str]
    # Images with the same key in both.
    shared_images: int
    labels: list[ComparedLabel]
    # In each store, how many heads have the CCS 0 to 5; empty for a store without scores, null if neither has any.
    ccs_counts: tuple[list[int], list[int]] | None
    # How many would by chance; empty where that is not known.
    ccs_counts_by_chance: tuple[list[float], list[float]] | None
    notices: list[str]
