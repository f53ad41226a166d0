"""Answers about an image whose heads are mean-ablated."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number
from headspan.web.answers.images import Neighbours, ZeroShot


class Accuracy(Answer):
    """Zero-shot accuracy over the store's images that have a class, before and after, beside chance."""

    images: int
    before: Number
    after: Number
    chance: Number


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
