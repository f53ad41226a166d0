"""The report's pictures: images as the model sees them, and maps over them, as JPEG data URIs.

Each shard is read once, from front to back. An image that cannot be read is reported with the reason, and the report
is written without it. Stores may come from other people: a command (`pipe:`) that a store names is never run, and
a network address is read only if the caller names it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from headspan.config import Preprocess
from headspan.decode.exact import Undecodable, preprocess_image
from headspan.errors import SourceError
from headspan.io.retry import is_remote
from headspan.shards.describe import describe
from headspan.shards.sources import open_shard
from headspan.store.tables import read_shards

THUMBNAIL_SIDE = 160
_JPEG_QUALITY = 82
# Orange for the text, blue against it; all common kinds of colour vision can tell them apart.
_FOR, _AGAINST = (214, 84, 10), (31, 84, 166)
_STRONGEST = 0.9
_GREY_LIFT = 0.35


def read_images(
    store_path: Path,
    preprocess: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    urls: Mapping[str, str] | None = None,
    given: Collection[str] = (),
) -> tuple[dict[int, Image.Image], dict[int, str]]:
    """Thumbnails by row, and the reason for each row without one.

    `samples` are rows of the store's table; `preprocess` is the store's attribute of that name. `urls` gives the
    present address of each shard by its name in the store; without it, the names are the addresses. A remote shard is
    read only if its URL is among `given`, the URLs that the caller named.
    """
    # JSON has no tuples.
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in preprocess.items()}
    known = Preprocess(**fields)
    planned_bytes = {shard.url: shard.size_bytes for shard in read_shards(store_path)}
    images: dict[int, Image.Image] = {}
    failed: dict[int, str] = {}
    for name, members in groupby(sorted(samples, key=_place), key=lambda sample: str(sample["url"])):
        url, wanted = (urls or {}).get(name, name), list(members)
        try:
            if url.startswith("pipe:"):
                raise SourceError(f"{url}: is a command, and reports do not run commands; name shards that are files")
            if is_remote(url) and url not in given:
                raise SourceError(f"{url}: is remote, and reports read remote shards only if --shards names them")
            if describe(url)[0] != planned_bytes.get(name):
                raise SourceError(f"{url}: has changed since precompute read it; restore the shard")
            with open_shard(url) as shard:
                for sample in wanted:
                    try:
                        encoded = shard.read_at(sample["offset"], sample["size_bytes"])
                        images[sample["row"]] = _thumbnail(preprocess_image(encoded, known))
                    except Undecodable as error:
                        failed[sample["row"]] = f"{url}: {sample['member']}: {error}"
        except SourceError as error:
            failed |= {sample["row"]: str(error) for sample in wanted if sample["row"] not in images}
    return images, failed


def overlay(image: Image.Image, contributions: Float[np.ndarray, "rows columns"], strongest: float) -> Image.Image:
    """The image in pale grey under its map: blue at `-strongest`, no colour at 0, orange at `strongest`."""
    smooth = Image.fromarray(contributions.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    share = np.clip(np.asarray(smooth) / max(strongest, np.finfo(np.float32).tiny), -1, 1)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    grey += _GREY_LIFT * (255 - grey)
    colour = np.where(share >= 0, np.array(_FOR, np.float32), np.array(_AGAINST, np.float32))
    opacity = _STRONGEST * np.abs(share)
    return Image.fromarray(np.rint(grey * (1 - opacity) + colour * opacity).astype(np.uint8))


def data_uri(image: Image.Image) -> str:
    """The image as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnail(pixels: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    return ImageOps.contain(Image.fromarray(pixels), (THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)


def _place(sample: Mapping[str, Any]) -> tuple[str, int]:
    return str(sample["url"]), int(sample["offset"])
