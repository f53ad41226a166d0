"""Answers about a text."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Number


class TextHead(HeadName):
    """How much one head carries a text."""

    label: str | None
    # The head's share of the variance of the text's score over the images, and what a random text's would be.
    share: Number
    random: Number
    # The share of a pool's texts that the head carries less.
    percentile: Number
    # The head's mean part of the score.
    mean: Number


class TextAnswer(Answer):
    """A text: which heads carry it, first the one that carries most."""

    store: str
    text: str
    # The text as the model reads it, if it was longer than the model's context and was cut.
    cut: str | None
    images: int
    score_mean: Number
    score_deviation: Number
    pool: str | None
    heads: list[TextHead]


class KnownTexts(Answer):
    """Texts whose vectors are stored, which are therefore answered at once."""

    store: str
    texts: list[str]
