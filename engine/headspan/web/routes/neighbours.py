"""The images nearest to an image or a text, through one choice of heads."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query

from headspan.errors import SettingsError
from headspan.explore.nearest.neighbours import Neighbours as Found
from headspan.explore.nearest.neighbours import ablated_vector, nearest, nearest_to_one_of, query_vector
from headspan.explore.query.query_image import QueryImage
from headspan.web.answers.images import Neighbours
from headspan.web.asked import EMBEDDING, Asked, AskedStore, named
from headspan.web.asked_texts import Text, asked_texts
from headspan.web.failures import RESPONSES
from headspan.web.through import Through, asked_through

router = APIRouter(prefix="/api/stores/{store}", tags=["neighbours"], responses=RESPONSES)

ThroughText = Annotated[
    str, Query(max_length=4000, description="embedding, all, L3.H2,L3.H4, label:NAME or random:NAME:SEED.")
]
WithoutText = Annotated[str, Query(max_length=4000, description="Heads to leave out, as in L3.H2,L3.H4.")]
Count = Annotated[int, Query(ge=1, le=100, description="How many neighbours.")]


@router.get("/neighbours")
def neighbours(
    asked: Asked,
    image: Annotated[str | None, Query(max_length=100)] = None,
    text: Text | None = None,
    through: ThroughText = EMBEDDING,
    without: WithoutText = "",
    count: Count = 12,
) -> Neighbours:
    """The nearest images to an image, itself left out, or to a text.

    `without` leaves heads out; of the whole embedding, it puts their contributions at their means in all images.
    """
    if (image is None) == (text is None):
        raise SettingsError("give one of image= and text=: the row or id of an image, or a text")
    chosen = asked_through(asked, through, without)
    if image is not None:
        return neighbours_of_image(asked, asked.image(image), chosen, count)
    assert text is not None, "one of both is given"
    texts = asked_texts(asked, [text])
    known = asked.explorer.model.known_texts(asked.store)
    if chosen.heads is None and not chosen.ablated and text in known.places:
        found = nearest_to_one_of(asked.store, known.vectors, known.places[text], count)
    else:
        found = _nearest(asked, texts.vectors[0].astype(np.float32), chosen, count)
    return _answer(asked, text, chosen, found, texts.notices)


def neighbours_of_image(asked: AskedStore, query: QueryImage, through: Through, count: int) -> Neighbours:
    """The images nearest to an image, without the image itself."""
    if through.ablated:
        vector = ablated_vector(asked.store, query, through.ablated).astype(np.float32)
    else:
        vector = query_vector(asked.store, query, through.heads)
    found = _nearest(asked, vector, through, count, query.image)
    return _answer(asked, "dropped-in image" if query.image is None else query.name, through, found, [])


def _nearest(asked: AskedStore, vector: np.ndarray, through: Through, count: int, image: int | None = None) -> Found:
    return nearest(asked.store, vector, through.heads, count, image, through.ablated, asked.explorer.searches)


def _answer(asked: AskedStore, query: str, through: Through, found: Found, notices: list[str]) -> Neighbours:
    return Neighbours(
        store=asked.name,
        query=query,
        through=through.name,
        title=through.title,
        heads=None if through.heads is None else named(through.heads),
        hits=asked.hits(found.images, found.scores),
        notices=notices,
    )
