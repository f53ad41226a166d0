"""Which part of a picture the model sees: resizing and cropping, as the store records them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from headspan.config import Preprocess
from headspan.decode.exact import border, corner, resized


class Box(NamedTuple):
    """A rectangle in a picture, in pixels from its upper left corner; borders may lie outside the picture."""

    left: float
    top: float
    right: float
    bottom: float


def stored_preprocess(preprocess: Mapping[str, Any]) -> Preprocess:
    """The preprocessing that a store records as its attribute `preprocess`."""
    # JSON has no tuples.
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in preprocess.items()}
    return Preprocess(**fields)


def seen_part(height: int, width: int, preprocess: Preprocess) -> Box:
    """The part of a picture of that size which becomes the model's input, in pixels of the picture.

    Resizing and the centre crop are inverted. Where the model's input is padded, the part ends outside the picture.
    """
    new_height, new_width = resized(height, width, preprocess)
    rows, columns = preprocess.size
    left, above, right, below = border(new_height, new_width, preprocess.size)
    top, start = corner(new_height + above + below, new_width + left + right, preprocess.size)
    if preprocess.resize_mode == "squash":
        left = above = top = start = 0
    across, down = width / new_width, height / new_height
    return Box(
        (start - left) * across,
        (top - above) * down,
        (start - left + columns) * across,
        (top - above + rows) * down,
    )
