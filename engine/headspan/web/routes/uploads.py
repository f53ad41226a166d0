"""Images that are dropped in: checked as the images of shards are, then kept in memory."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from headspan.errors import SettingsError
from headspan.web.answers.common import Failure
from headspan.web.answers.images import Upload
from headspan.web.asked import Asked, AskedStore
from headspan.web.failures import RESPONSES
from headspan.web.state.pictures import size_of
from headspan.web.state.uploads import LARGEST_BYTES

router = APIRouter(prefix="/api/stores/{store}", tags=["uploads"], responses=RESPONSES)

# The page shows this size first.
_FIRST_SIDE = 512
_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        "description": f"An image file (JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF) of at most {LARGEST_BYTES >> 20} MB.",
    }
}


@router.post("/uploads", openapi_extra=_BODY, responses={413: {"model": Failure, "description": "Too large."}})
async def upload(asked: Asked, request: Request) -> Upload:
    """Keep an image in memory under an id that stands where addresses name an image; nothing is written."""
    # `guard` counts the bytes while they arrive.
    encoded = await request.body()
    return await run_in_threadpool(_kept, asked, encoded)


def _kept(asked: AskedStore, encoded: bytes) -> Upload:
    if not encoded:
        raise SettingsError("the request has no body; send the bytes of an image file")
    width, height = size_of(encoded, asked.store)
    # Decoded now, so that a file that is cut off is refused at once.
    asked.explorer.pictures.picture(encoded, asked.store, _FIRST_SIDE)
    return Upload(id=asked.explorer.uploads.add(encoded), width=width, height=height)
