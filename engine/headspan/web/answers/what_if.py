"""Answers about an image whose heads are mean-ablated."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number
from headspan.web.answers.images import Neighbours, ZeroShot


class Accuracy(Answer):
    """Zero-shot accuracy over images whose class a text names, with all heads and without some, beside chance."""

    store: str
    # The classes that texts name, and the texts of each. A class's vector is the mean of its texts' unit vectors.
    classes: dict[str, list[str]]
    # The column of the metadata whose values are the classes; null for the images' own classes.
    column: str | None
    without: list[HeadName]
    # Images whose class is named, of so many that were looked at: at most 10,000, evenly spaced.
    images: int
    looked_at: int
    before: Number
    after: Number
    # The share if the most common of the classes were named for every image.
    chance: Number
    notices: list[str]


class WhatIf(Answer):
    """An image's answers with all heads, and with some of them replaced by their means over the store's images."""

    store: str
    id: str
    without: list[HeadName]
    before: list[ZeroShot]
    after: list[ZeroShot]
    neighbours_before: Neighbours
    neighbours_after: Neighbours
    # The cosine of the embeddings before and after.
    embedding_cosine: Number
    notices: list[str]
