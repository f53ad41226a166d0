"""Colourings of the points of planes: by class, by words of captions, by a column of metadata, by a text's score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Response

from headspan.errors import SettingsError
from headspan.store.head_space import Head
from headspan.web.answers.heads import Categories
from headspan.web.asked import EMBEDDING, Asked, AskedStore
from headspan.web.failures import RESPONSES
from headspan.web.filtered import words_of
from headspan.web.planes import images_of, parts_of, rows_of, space_of
from headspan.web.routes.planes import BINARY, Part, binary
from headspan.web.samples.categories import Coloured, by_class, by_column, by_words, score_codes, score_range
from headspan.web.samples.columns import read_column
from headspan.web.samples.filters import unique_words

router = APIRouter(prefix="/api/stores/{store}/categories", tags=["planes"], responses=RESPONSES)
By = Annotated[
    str, Query(max_length=2000, description="`class`, `word:dog,cat`, `column:NAME`, or `text:a photo of a dog`")
]
OfPlane = Annotated[
    str, Query(max_length=40, description="For a text: the head that it is scored through, or `embedding`")
]
_MOST_WORDS = 20
# Images that tell the range of a text's scores.
_RANGE_IMAGES = 8192


@dataclass(frozen=True)
class _Scored:
    """A text's vector and the range of its scores through the plane's head."""

    vector: np.ndarray
    low: float
    high: float


@router.get("", response_model=Categories)
def categories(asked: Asked, by: By = "class", of: OfPlane = EMBEDDING) -> Response:
    """The names of the categories of a colouring, or the range of a continuous one."""
    head = asked.head_or_embedding(of) if by.startswith("text:") else None
    return asked.answer(("categories", by, head), lambda: _categories(asked, by, head))


def _categories(asked: AskedStore, by: str, head: Head | None) -> Categories:
    parts = parts_of(asked.store)
    if by.startswith("text:"):
        scored = _scored(asked, by, head)
        return Categories(
            store=asked.name,
            by=by,
            names=[],
            counts=[],
            continuous=True,
            low=scored.low,
            high=scored.high,
            parts=parts,
        )
    found = _coloured(asked, by)
    return Categories(
        store=asked.name,
        by=by,
        names=found.names,
        counts=found.counts,
        continuous=False,
        low=None,
        high=None,
        parts=parts,
    )


@router.get("/codes", response_class=Response, responses=BINARY)
def codes(asked: Asked, by: By = "class", of: OfPlane = EMBEDDING, part: Part = 0) -> Response:
    """The codes of the points of one part, in their order: one uint8 each; 255 means none of the categories."""
    rows = rows_of(asked.store, part)
    if not by.startswith("text:"):
        return binary(_coloured(asked, by).codes[images_of(asked.store, part)].tobytes())
    head = asked.head_or_embedding(of)
    scored = _scored(asked, by, head)

    def compute() -> np.ndarray:
        return score_codes(space_of(asked, head).scores(rows, scored.vector), scored.low, scored.high)

    return binary(asked.keep(("codes", by, head, part), compute, lambda found: int(found.nbytes)).tobytes())


def _scored(asked: AskedStore, by: str, head: Head | None) -> _Scored:
    text = by.removeprefix("text:").strip()
    if not text:
        raise SettingsError("by=text: names no text; write text:a photo of a dog, for example")

    def compute() -> _Scored:
        (vector,), _ = asked.vectors([text])
        # The first part is an even sample of all images, and so is a part of it.
        rows = rows_of(asked.store, 0)
        scores = space_of(asked, head).scores(rows[:: -(-len(rows) // _RANGE_IMAGES)], vector)
        return _Scored(vector, *score_range(scores))

    return asked.keep(("scored", text, head), compute, lambda found: int(found.vector.nbytes))


def _coloured(asked: AskedStore, by: str) -> Coloured:
    return asked.keep(("coloured", by), lambda: _compute(asked, by), lambda found: int(found.codes.nbytes))


def _compute(asked: AskedStore, by: str) -> Coloured:
    kind, _, name = by.partition(":")
    if by == "class":
        return by_class(asked.classes())
    if kind == "word":
        words = unique_words(name.split(","))
        if len(words) > _MOST_WORDS:
            raise SettingsError(f"by=word: names {len(words)} words; give at most {_MOST_WORDS}")
        return by_words(words, words_of(asked, words), asked.store.images)
    if kind == "column" and name:
        return by_column(read_column(asked.store, name))
    raise SettingsError(
        f"by={by[:60]}: is no colouring; give class, word:dog,cat, column:NAME or text:a photo of a dog"
    )
