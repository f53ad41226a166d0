"""Write scenes as WebDataset shards of image, mask, metadata and caption.

`KEY.png` is the image, `KEY.mask.png` its mask (a palette PNG: 0 is background, i the i-th object), `KEY.json` the
scene's metadata, and `KEY.txt` a caption. The same arguments always give the same bytes. Images are PNG, not JPEG, so a
shard contains exactly the pixels of `render`; encoding takes two to three times as long as drawing.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.errors import SettingsError, counted
from headspan.events import Listener, Progress, ignore
from headspan.shard_writer.tars import numbered
from headspan.world.captions import caption
from headspan.world.drawing import render
from headspan.world.factors import SPLITS, Scene
from headspan.world.scenes import scene
from headspan.world.stream import Stream
from headspan.world.telling import Telling

# Scenes drawn at a time, and the last part of the keys of the random streams of a caption and of its words.
_BATCH, _CAPTIONS, _WORDS = 256, 1, 2
# Colours of the background and of each object, for people who look at a mask.
_MASK_PALETTE = bytes((0, 0, 0, 230, 60, 60, 60, 160, 230, 90, 190, 90, 240, 190, 60, 170, 90, 200, 240, 240, 240))


def write_world_shards(
    folder: str | Path,
    images: int,
    seed: int,
    images_per_shard: int = 1000,
    side: int = 64,
    split: str = "train",
    on_progress: Listener = ignore,
    *,
    without: Sequence[str] = (),
    words: Sequence[str] = (),
) -> str:
    """Write scenes 0 to `images` - 1 of a seed and split as `folder/000000.tar` and so on.

    `without` names factors that no caption tells of, and `words` kinds of words that captions hold and images do not
    show; see `world.telling`. The metadata then holds `left_out`, those factors, and `words`, what the caption says of
    each kind.

    Returns a brace pattern of all shards. Sends a `Progress` of stage `shards` after each batch. Raises SettingsError
    if a number, the split, a factor or a kind of words is out of range, or if `folder` is not empty or cannot be
    written.
    """
    folder, telling = Path(folder), Telling(tuple(without), tuple(words))
    if images < 1 or images_per_shard < 1:
        raise SettingsError(
            f"{counted(images, 'image')} in shards of {images_per_shard}: nothing to write; give at least 1 of each"
        )
    # Wrong seeds, splits and sides raise here, before anything is written.
    render([scene(seed, split, 0)], side)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise SettingsError(f"{folder}: is not empty; name another directory, or delete this one")
        starts = range(0, images, images_per_shard)
        for shard, start in enumerate(starts):
            with tarfile.open(folder / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                end = min(start + images_per_shard, images)
                for first in range(start, end, _BATCH):
                    _write_batch(tar, seed, split, range(first, min(first + _BATCH, end)), side, telling)
                    on_progress(Progress("shards", min(first + _BATCH, end), images))
    except OSError as error:
        raise SettingsError(f"{folder}: cannot be written ({error.strerror}); name another directory") from error
    return numbered(folder, len(starts))


def _write_batch(tar: tarfile.TarFile, seed: int, split: str, indices: range, side: int, telling: Telling) -> None:
    scenes = [telling.drawn(scene(seed, split, index)) for index in indices]
    pixels, masks = render(scenes, side, masks=True)
    for each, image, mask in zip(scenes, pixels, masks, strict=True):
        text, metadata = _told(each, side, telling)
        for extension, data in (
            ("png", _png(Image.fromarray(image))),
            ("mask.png", _png(_palette_image(mask))),
            ("json", json.dumps(metadata).encode()),
            ("txt", text.encode()),
        ):
            member = tarfile.TarInfo(f"{each.index:09d}.{extension}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _told(scene: Scene, side: int, telling: Telling) -> tuple[str, dict[str, Any]]:
    """The scene's caption and metadata."""
    key = scene.seed, SPLITS.index(scene.split), scene.index
    if telling.plain:
        return caption(scene, Stream(*key, _CAPTIONS)), scene.metadata(side)
    text, words = telling.caption(scene, Stream(*key, _CAPTIONS), Stream(*key, _WORDS))
    return text, {**scene.metadata(side), "left_out": [*telling.without], "words": words}


def _palette_image(mask: UInt8[np.ndarray, "side side"]) -> Image.Image:
    image = Image.frombytes("P", (mask.shape[1], mask.shape[0]), mask.tobytes())
    image.putpalette(_MASK_PALETTE)
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
