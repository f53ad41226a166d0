"""Answers about some of a store's images."""

from __future__ import annotations

from headspan.web.answers.common import Answer, HeadName, Hit, Number


class Listing(Answer):
    """Images that pass a filter, one page of them."""

    store: str
    total: int
    offset: int
    images: list[Hit]
    # The filter in words, such as "whose caption has the word dog".
    words: str


class CaptionWord(Answer):
    """A word of the captions, and how many of the captions that were counted have it."""

    word: str
    images: int


class Facets(Answer):
    """What a store's images can be filtered by: classes, frequent words of captions, columns of metadata."""

    store: str
    classes: dict[str, int]
    words: list[CaptionWord]
    columns: list[str]
    # Names of classes by number, as far as they are known.
    class_names: dict[int, str]
    # Frequent values of each column, in a sample of the images.
    values: dict[str, list[str]]
    # How many captions the words were counted in; their numbers are of these captions.
    captions_counted: int


class SelectedHead(HeadName):
    """A head over a selection of images, beside the whole store."""

    label: str | None
    texts: list[str]
    # The share of the embeddings' variance over the selection and over the store, and the first divided by the second.
    variance_share: Number
    store_variance_share: Number
    ratio: Number
    # How far the head's mean over the selection lies from the store's, in standard deviations, and the text it is
    # towards.
    shift: Number
    towards: str | None


class Described(Answer):
    """What the heads say about a selection: those first that differ most from the whole store."""

    store: str
    words: str
    images: int
    heads: list[SelectedHead]
    notices: list[str]
