"""Planes of all images: the first two principal directions of a head's contributions, or of the embeddings."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Path, Query, Response

from headspan.errors import HeadspanError
from headspan.explore.atlas.space import Space
from headspan.store.head_space import Head
from headspan.texts.stored import EmbeddedPool, find_vectors
from headspan.web.answers.heads import Place, Plane
from headspan.web.asked import Asked, AskedStore, named
from headspan.web.failures import RESPONSES
from headspan.web.planes import extent_of, parts_of, points_of, rows_of, space_of
from headspan.web.routes.heads import pool_of

router = APIRouter(prefix="/api/stores/{store}/planes/{of}", tags=["planes"], responses=RESPONSES)
Of = Annotated[str, Path(max_length=40, description="A head such as L22.H13, or `embedding`")]
Part = Annotated[int, Query(ge=0, le=1 << 30, description="The number of the part, from 0")]
BINARY: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.get("", response_model=Plane)
def plane(asked: Asked, of: Of) -> Response:
    """What a page needs before the points: their number, their extent, and texts at the ends of the axes."""
    head = asked.head_or_embedding(of)
    return asked.answer(("plane", head), lambda: _plane(asked, head))


def _plane(asked: AskedStore, head: Head | None) -> Plane:
    space = space_of(asked, head)
    return Plane(
        store=asked.name,
        head=None if head is None else named([head])[0],
        images=asked.store.images,
        parts=parts_of(asked.store),
        shares=(float(space.shares[0]), float(space.shares[1]) if len(space.shares) > 1 else 0.0),
        extent=extent_of(asked, head),
        ends=_ends(asked, space),
    )


@router.get("/points", response_class=Response, responses=BINARY)
def points(asked: Asked, of: Of, part: Part = 0) -> Response:
    """One part of the points: their number n and n rows as uint32, then n x and n y as float32; little-endian."""
    rows = rows_of(asked.store, part)
    found = points_of(asked, asked.head_or_embedding(of), part)
    parts = (np.array([len(rows)], "<u4"), rows.astype("<u4"), *(found[:, axis].astype("<f4") for axis in (0, 1)))
    return binary(b"".join(each.tobytes() for each in parts))


@router.get("/place/{image}")
def place(asked: Asked, of: Of, image: Annotated[str, Path(max_length=40)]) -> Place:
    """Where one image is in the plane: a stored one by its row, or one that was dropped in."""
    space = space_of(asked, asked.head_or_embedding(of))
    x, y = space.place(asked.image(image)).tolist()
    return Place(store=asked.name, id=image, x=x, y=y)


def binary(content: bytes) -> Response:
    """An answer of numbers."""
    return Response(content, media_type="application/octet-stream")


def _ends(asked: AskedStore, space: Space) -> tuple[str | None, str | None, str | None, str | None]:
    """Texts with the smallest and largest products with both axes: left, right, bottom, top; null without vectors."""
    pool = _stored_pool(asked)
    if pool is None:
        return None, None, None, None
    found: list[str | None] = []
    for axis in (0, 1):
        if axis >= len(space.directions):
            found += [None, None]
            continue
        along = pool.vectors @ space.directions[axis]
        found += [pool.pool.texts[int(along.argmin())], pool.pool.texts[int(along.argmax())]]
    left, right, bottom, top = found
    return left, right, bottom, top


def _stored_pool(asked: AskedStore) -> EmbeddedPool | None:
    """The vectors of the texts of the shown run, or of the largest pool, if the store keeps them."""

    def read() -> EmbeddedPool | None:
        try:
            return find_vectors(asked.store, pool_of(asked))
        except HeadspanError:
            return None

    return asked.keep("pool vectors", read, lambda pool: 0 if pool is None else int(pool.vectors.nbytes))
