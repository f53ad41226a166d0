"""Read the masks that lie beside a store's images: which pixels, as the model saw them, show the object.

The mask of `KEY.jpg` is the member `KEY.mask.png` of the same tar, or the file of that name in the same folder; that of
`KEY.left.jpg` may also be `KEY.left.mask.png`. Any image format will do. Pixels of value 0 are background, and all
others are object: classes in a palette, grey levels and colours all work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from PIL import Image as Pil

from headspan.config import Preprocess
from headspan.decode.exact import PIL_ERRORS, Undecodable, crop_or_pad, open_image, resized
from headspan.errors import SourceError, one_line
from headspan.originals.encoded_image import by_shard
from headspan.originals.find_shards import find_shards
from headspan.originals.seen_part import stored_preprocess
from headspan.shards.image_list import root_of
from headspan.shards.images import ImageReader, Wanted
from headspan.shards.kinds import FOLDER, LIST, TAR, kind_of
from headspan.shards.members import IMAGE_EXTENSIONS
from headspan.shards.sources import open_shard
from headspan.shards.tar import Tar
from headspan.store.reader import Store

_MASK = re.compile(rf"(?:(.*)\.)?mask\.(?:{'|'.join(sorted(IMAGE_EXTENSIONS))})")


class _Name(NamedTuple):
    """The key of a member, and what its name has between the key and the extension."""

    key: str
    stem: str


def read_masks(
    store: Store, images: Sequence[int] | np.ndarray, shards: Sequence[str] = ()
) -> Iterator[tuple[int, Bool[np.ndarray, "height width"]]]:
    """Yield the index and the mask of those of `images` that have one, resized and cropped as the model saw the image.

    Masks are resized to the nearest pixel; the padding of an image is background. They come shard by shard. `shards`
    are as in `encoded_image`. Raises SourceError if a shard or a mask cannot be read, or if a mask has another shape
    than its image.
    """
    preprocess = stored_preprocess(store.attributes["preprocess"])
    urls, _ = find_shards(store, shards)
    indices = {int(store.rows[image]): int(image) for image in images}
    samples = store.samples(np.asarray(images), ["row", "url", "member", "offset", "size_bytes"]).to_pylist()
    for url, members, opened in by_shard(store, samples, urls, urls.values() if shards else ()):
        # Opening checks that the shard may be read, and is the one that was planned.
        with opened() as reader:
            if kind_of(url) == TAR:
                pairs = _from_tar(reader, url, members)
            elif kind_of(url) in (FOLDER, LIST):
                pairs = _from_files(Path(root_of(url)), members)
            else:
                continue
            for row, where, encoded, mask in pairs:
                yield indices[row], _as_seen(encoded, mask, preprocess, where)


def _from_tar(
    reader: ImageReader, url: str, members: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[int, str, bytes, bytes]]:
    """Row, name of the mask, encoded image and encoded mask of the images of a tar that have masks."""
    masks = _in_tar(url)
    for sample in members:
        name = _named(sample["member"])
        place = masks.get(name) or masks.get(_Name(name.key, ""))
        if place is not None:
            places = sorted([(sample["offset"], sample["size_bytes"]), place])
            # In their order, because a packed tar is read forwards.
            offsets, sizes = zip(*places, strict=True)
            found = [data for data, _ in reader.read(Wanted(offsets, sizes, (sample["member"],) * 2))]
            image, mask = found if places[1] == place else found[::-1]
            yield sample["row"], f"{url}: the mask of {sample['member']}", image, mask


def _from_files(root: Path, members: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, str, bytes, bytes]]:
    """As `_from_tar`, for images that are files below `root`."""
    for sample in members:
        image = root / sample["member"]
        extensions = ("png", *sorted(IMAGE_EXTENSIONS))
        masks = (image.with_name(f"{image.stem}.mask.{extension}") for extension in extensions)
        mask = next((path for path in masks if path.is_file()), None)
        if mask is not None:
            try:
                yield sample["row"], str(mask), image.read_bytes(), mask.read_bytes()
            except OSError as error:
                raise SourceError(
                    f"{error.filename}: cannot be read ({error.strerror}); correct its permissions"
                ) from error


def _named(path: str) -> _Name:
    """A member's key, which ends at the first dot of its name, and the rest without the extension."""
    dot = path.find(".", path.rfind("/") + 2)
    return _Name(path, "") if dot < 0 else _Name(path[:dot], path[dot + 1 :].lower().rpartition(".")[0])


def _in_tar(url: str) -> dict[_Name, tuple[int, int]]:
    """Offset and size of each mask of a tar, by the name of the images that it belongs to."""
    found: dict[_Name, tuple[int, int]] = {}
    with open_shard(url) as reader:
        for path, offset, size, _ in Tar(reader).members():
            dot = path.find(".", path.rfind("/") + 2)
            if dot >= 0 and size > 0 and (match := _MASK.fullmatch(path[dot + 1 :].lower())):
                found[_Name(path[:dot], match[1] or "")] = (offset, size)
    return found


def _as_seen(encoded: bytes, mask: bytes, preprocess: Preprocess, where: str) -> Bool[np.ndarray, "height width"]:
    """The pixels of a mask that show the object, after the resizing and cropping of its image."""
    try:
        image, opened = open_image(encoded, preprocess), open_image(mask, preprocess)
        if image.size != opened.size:
            raise SourceError(
                f"{where}: has {opened.width} x {opened.height} pixels, but its image {image.width} x {image.height}; "
                "write masks as large as the images"
            )
        values = np.asarray(opened)
        if values.ndim == 3:
            # Alpha says nothing about the object.
            values = values[..., : len(opened.getbands()) - ("A" in opened.getbands())].max(axis=-1)
        binary = Pil.fromarray((values != 0).astype(np.uint8))
        height, width = resized(opened.height, opened.width, preprocess)
        binary = binary.resize((width, height), Pil.Resampling.NEAREST)
        if preprocess.resize_mode != "squash":
            binary = crop_or_pad(binary, preprocess.size, 0)
    except Undecodable as error:
        raise SourceError(f"{where}: {error}") from error
    except PIL_ERRORS as error:
        raise SourceError(f"{where}: cannot be decoded ({one_line(error)})") from error
    return np.asarray(binary) != 0
