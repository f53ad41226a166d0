"""Decide which images are masks of other images. A mask has no row of its own."""

from __future__ import annotations

import re
from collections.abc import Collection

from headspan.shards.members import prefixes

_MASK_WORD = re.compile(
    r"(masks?|seg|segm|segmentation|semantic|instances?|panoptic|depth|disparity|normals?|flow|edges?|canny|alpha|"
    r"matte|trimap)[_-]?[0-9]*"
)


def mask_stems(images: Collection[str], companions: Collection[str]) -> set[str]:
    """The stems in `images` that belong to masks.

    `images` and `companions` are the stems of members with the same key. A stem belongs to a mask if it has a word such
    as `mask` or `depth`, if no companion has the same stem, and if another image's stem begins with the part before
    that word, or is a beginning of that part.
    """
    bases = {stem: base for stem in images if (base := _before_mask_word(stem)) is not None}
    for stem in companions:
        bases.pop(stem, None)
    others = {stem for stem in images if stem not in bases}
    beginnings = {prefix for stem in others for prefix in prefixes(stem)}
    return {
        stem for stem, base in bases.items() if base in beginnings or any(prefix in others for prefix in prefixes(base))
    }


def _before_mask_word(stem: str) -> str | None:
    """The part of `stem` before its first mask word; None if it has no such word."""
    words = stem.split(".")
    place = next((place for place, word in enumerate(words) if _MASK_WORD.fullmatch(word)), None)
    return None if place is None else ".".join(words[:place])
