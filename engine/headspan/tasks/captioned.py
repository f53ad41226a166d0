"""Images with their captions, in groups: the frames of a video, or a single image.

Images of a tar that are named by a key and a number, such as `KEY.000.jpg` and `KEY.001.jpg`, are a group; every other
image is one of its own. Captions are the lines of the caption member, as CLIP-benchmark has them for retrieval, then
those that the JSON member has under `captions`, as `headspan frames` writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Int64

from headspan.shards.kinds import TAR, kind_of
from headspan.store.reader import Store
from headspan.store.selection import Images, chosen_images, usable_images

# The group of an image that is not used.
NONE = -1
# Samples whose metadata are parsed at once.
_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True, eq=False)
class CaptionedGroups:
    """Groups of images with their captions, in the order of the groups' first images."""

    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    # The number of each image's group; -1 for an image that could not be used.
    group: Int64[np.ndarray, " images"]


def captioned_groups(store: Store, images: Images | None = None) -> CaptionedGroups:
    """The groups of a store's images, or of some of them. A group without captions has an empty tuple."""
    chosen = chosen_images(store, images)
    usable = usable_images(store, chosen)
    table = store.samples(chosen, ["key", "url", "member", "caption", "metadata"])
    numbers: dict[tuple[str, str], int] = {}
    captions: list[tuple[str, ...]] = []
    group = np.full(len(chosen), NONE, np.int64)
    for first in range(0, len(chosen), _AT_ONCE):
        for place, sample in enumerate(table.slice(first, _AT_ONCE).to_pylist(), first):
            if not usable[place]:
                continue
            name = _video_of(sample["member"]) if _is_tar(sample["url"]) else None
            number = numbers.setdefault((sample["url"], name or sample["key"]), len(numbers))
            if number == len(captions):
                captions.append(())
            # The frames of a video have the same companions, so one of them is enough.
            captions[number] = captions[number] or caption_lines(sample["caption"], sample["metadata"])
            group[place] = number
    return CaptionedGroups(tuple(key for _, key in numbers), tuple(captions), group)


@cache
def _is_tar(url: str) -> bool:
    return kind_of(url) == TAR


def _video_of(member: str) -> str | None:
    """The key of a member that is a numbered frame; None for any other."""
    folder, slash, base = member.rpartition("/")
    dot = base.find(".", 1)
    stem = base[dot + 1 :].rpartition(".")[0]
    return f"{folder}{slash}{base[:dot]}" if dot > 0 and stem.isascii() and stem.isdigit() else None


def caption_lines(caption: str | None, metadata: str | None) -> tuple[str, ...]:
    """The captions of a sample, one line each, each once; that of the caption member first."""
    content = None if metadata is None else json.loads(metadata)
    listed = content.get("captions") if isinstance(content, dict) else None
    texts = [text for text in listed if isinstance(text, str)] if isinstance(listed, list) else []
    lines = [" ".join(line.split()) for line in (*(caption or "").splitlines(), *texts)]
    return tuple(dict.fromkeys(line for line in lines if line))
