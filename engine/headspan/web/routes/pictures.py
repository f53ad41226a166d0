"""Pictures of images, read from the shards by their offsets, or dropped in."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response

from headspan.errors import SourceError
from headspan.web.asked import Asked, AskedStore
from headspan.web.failures import RESPONSES
from headspan.web.refusals import Missing
from headspan.web.state.pictures import original
from headspan.web.state.uploads import PREFIX

router = APIRouter(prefix="/api/stores/{store}/images/{id}", tags=["pictures"], responses=RESPONSES)

ImageId = Annotated[str, Path(max_length=200, description="An image's row, or the id of a dropped-in one.")]
KnownTag = Annotated[str | None, Header(description="The ETag of the picture that the browser has.")]
_SMALLEST, _USUAL, _LARGEST = 32, 224, 1024
_TYPE = "image/webp"
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {_TYPE: {}}, "description": "A WebP file."},
    304: {"description": "The browser has this picture."},
}


@router.get("/picture", response_class=Response, responses=_ANSWERS)
def picture(
    asked: Asked,
    id: ImageId,  # noqa: A002
    side: Annotated[int, Query(ge=_SMALLEST, le=_LARGEST, description="Pixels on the longer side.")] = _USUAL,
    if_none_match: KnownTag = None,
) -> Response:
    """The whole picture, as its shard has it, reduced to `side` pixels; without the original's metadata."""
    return _picture(asked, id, side, if_none_match)


@router.get("/seen", response_class=Response, responses=_ANSWERS)
def seen(asked: Asked, id: ImageId, if_none_match: KnownTag = None) -> Response:  # noqa: A002
    """The part of the picture that the model sees, resized as the model sees it."""
    return _picture(asked, id, None, if_none_match)


def encoded_image_of(asked: AskedStore, name: str) -> bytes:
    """The file of a stored or dropped-in image. Raises Missing if there is none, or if its shard is gone or changed."""
    if name.startswith(PREFIX):
        return asked.explorer.uploads.get(name)
    image = asked.index_of(name)
    try:
        return original(asked.store, image, asked.explorer.shards)
    except SourceError as error:
        raise Missing(f"the picture of row {name} cannot be read: {error}") from error


def _picture(asked: AskedStore, name: str, side: int | None, known: str | None) -> Response:
    encoded, pictures = encoded_image_of(asked, name), asked.explorer.pictures
    tag = f'"{pictures.tag(encoded, asked.store, side)}"'
    # A row may hold another picture if the shard was replaced, so the browser asks each time.
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if known is not None and tag in known:
        return Response(status_code=304, headers=headers)
    try:
        return Response(pictures.picture(encoded, asked.store, side), media_type=_TYPE, headers=headers)
    except SourceError as error:
        raise Missing(f"image {name}: {error}") from error
