"""Rows of small pictures with a line or two below each, as one image for a PNG file; drawn with PIL alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from headspan.plots.colours import LIGHT
from headspan.plots.lettering import font, shortened_to

_MARGIN, _GAP, _LINE, _SIDE = 14, 8, 17, 160
_AFTER_QUERY = 24


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture, and the lines below it."""

    # None if the picture cannot be shown.
    picture: UInt8[np.ndarray, "height width 3"] | None
    lines: tuple[str, ...]
    # What stands in its place then.
    instead: str = "no picture"


@dataclass(frozen=True, slots=True)
class Strip:
    """One row of pictures."""

    title: str
    tiles: tuple[Tile, ...]


def draw_strips(query: Tile | None, strips: Sequence[Strip]) -> Image.Image:
    """The query's picture to the left, if there is one, and each strip in a row of its own, below its title."""
    most = max((len(strip.tiles) for strip in strips), default=0)
    shown = [*([] if query is None else [query]), *(tile for strip in strips for tile in strip.tiles)]
    lines = max((len(tile.lines) for tile in shown), default=1)
    tall = _LINE + _SIDE + lines * _LINE + _GAP
    left = _MARGIN if query is None else _MARGIN + _SIDE + _AFTER_QUERY
    width = max(left + most * (_SIDE + _GAP) - _GAP, _MARGIN + _SIDE) + _MARGIN
    page = Image.new("RGB", (width, 2 * _MARGIN + max(1, len(strips)) * tall - _GAP), LIGHT.page)
    draw = ImageDraw.Draw(page)
    for number, strip in enumerate(strips):
        x, y = left, _MARGIN + number * tall
        draw.text((x, y), shortened_to(strip.title, width - x - _MARGIN, font(13)), LIGHT.ink, font(13))
        for place, tile in enumerate(strip.tiles):
            _draw_tile(page, draw, x + place * (_SIDE + _GAP), y + _LINE, tile)
    if query is not None:
        draw.text((_MARGIN, _MARGIN), "query", LIGHT.ink, font(13))
        _draw_tile(page, draw, _MARGIN, _MARGIN + _LINE, query)
        middle = _MARGIN + _SIDE + _AFTER_QUERY // 2
        draw.line((middle, _MARGIN, middle, page.height - _MARGIN), LIGHT.faint)
    return page


def _draw_tile(page: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, tile: Tile) -> None:
    small = font(12)
    if tile.picture is None:
        draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), outline=LIGHT.faint)
        words = _wrapped(tile.instead, _SIDE - 16)
        draw.multiline_text((x + _SIDE / 2, y + _SIDE / 2), words, LIGHT.soft, small, "mm", align="center")
    else:
        picture = Image.fromarray(tile.picture)
        scale = _SIDE / max(picture.size)
        picture = picture.resize(
            (max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Image.Resampling.LANCZOS
        )
        page.paste(picture, (x + (_SIDE - picture.width) // 2, y + (_SIDE - picture.height) // 2))
    for number, line in enumerate(tile.lines):
        colour = LIGHT.soft if number else LIGHT.ink
        draw.text((x, y + _SIDE + 2 + number * _LINE), shortened_to(line, _SIDE, small), colour, small)


def _wrapped(text: str, width: int) -> str:
    """`text` in lines that are at most that wide, at most eight."""
    small, lines = font(12), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and small.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    shown = [*lines[:7], " ".join(lines[7:])] if len(lines) > 8 else lines
    return "\n".join(shortened_to(line, width, small) for line in shown)
