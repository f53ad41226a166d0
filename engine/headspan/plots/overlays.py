"""Maps laid over pictures, as one image for a PNG file; drawn with PIL alone.

Each map lies where the model looked: the part of the picture that resizing and cropping kept. The rest of the picture
is paler. All maps of an image have one scale, whose zero has no colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

from headspan.plots.colours import LIGHT, PICTURE_OPACITY, STRONGEST, map_colours
from headspan.plots.lettering import font, shortened_to

# The ITU-R BT.601 weights of grey, which browsers and Pillow use too.
_GREY = np.array((0.299, 0.587, 0.114))
# Of the page outside the part that the model sees.
_UNSEEN_OPACITY = 0.15
_MARGIN, _GAP, _LINE = 14, 8, 18
_BAR_HEIGHT, _LEAST_WIDTH = 14, 340


@dataclass(frozen=True, slots=True)
class Style:
    """How maps are coloured."""

    # The value of full colour, on both sides of zero.
    full: float
    # Values nearer to zero have no colour.
    threshold: float = 0.0
    # Opacity at full colour.
    opacity: float = STRONGEST
    # Patches as squares, and not bilinear between their centres.
    squares: bool = False
    # The longer side of each picture, in pixels.
    side: int = 320


@dataclass(frozen=True, slots=True)
class Row:
    """One picture, and its maps side by side."""

    name: str
    # None if the picture cannot be shown.
    picture: UInt8[np.ndarray, "height width 3"] | None
    # The part that the model sees, in pixels of the picture: left, top, right, bottom.
    seen: tuple[float, float, float, float]
    maps: Float32[np.ndarray, "text rows columns"]


@dataclass(frozen=True, slots=True)
class Legend:
    """The words around the maps."""

    title: str
    # One for each map of a row.
    texts: tuple[str, ...]
    # What orange and blue stand for, and the unit of the scale.
    positive: str
    negative: str
    unit: str


def draw_overlays(rows: Sequence[Row], legend: Legend, style: Style) -> Image.Image:
    """A grid with a row for each picture, its picture in colour first, then its maps; below it the scale."""
    with_pictures = any(row.picture is not None for row in rows)
    cells = [_cells(row, style, with_pictures) for row in rows]
    columns = len(cells[0])
    widths = [max(line[place].shape[1] for line in cells) for place in range(columns)]
    grid_width = sum(widths) + _GAP * (columns - 1)
    width = 2 * _MARGIN + max(grid_width, _LEAST_WIDTH)
    heights = [max(cell.shape[0] for cell in line) for line in cells]
    height = 2 * _MARGIN + 2 * _LINE + sum(heights) + len(rows) * (_LINE + _GAP) + _BAR_HEIGHT + 3 * _LINE
    page = Image.new("RGB", (width, height), LIGHT.page)
    draw = ImageDraw.Draw(page)
    large, small = font(14), font(12)
    draw.text((_MARGIN, _MARGIN), shortened_to(legend.title, width - 2 * _MARGIN, large), LIGHT.ink, large)
    y = _MARGIN + _LINE + 4
    texts = ("",) * (columns - len(legend.texts)) + legend.texts
    for place, text in enumerate(texts):
        x = _MARGIN + sum(widths[:place]) + _GAP * place
        draw.text((x, y), shortened_to(text, widths[place], small), LIGHT.ink, small)
    y += _LINE
    for row, line, tall in zip(rows, cells, heights, strict=True):
        for place, cell in enumerate(line):
            page.paste(Image.fromarray(cell), (_MARGIN + sum(widths[:place]) + _GAP * place, y))
        draw.text((_MARGIN, y + tall + 2), shortened_to(row.name, grid_width, small), LIGHT.soft, small)
        y += tall + _LINE + _GAP
    _draw_scale(page, draw, y, legend, style)
    return page


def overlay(
    picture: UInt8[np.ndarray, "height width 3"] | None,
    seen: tuple[float, float, float, float],
    values: Float32[np.ndarray, "rows columns"],
    style: Style,
) -> UInt8[np.ndarray, "height width 3"]:
    """One map over its picture in grey, in the picture's pixels; without a picture, over white."""
    if picture is None:
        height, width = _fitting(values.shape[0], values.shape[1], style.side)
        picture, seen = np.full((height, width, 3), 255, np.uint8), (0.0, 0.0, float(width), float(height))
    height, width = picture.shape[:2]
    left, top, right, bottom = seen
    down, rows_seen = _weights(height, top, bottom, values.shape[0], style.squares)
    along, columns_seen = _weights(width, left, right, values.shape[1], style.squares)
    placed = (down @ values @ along.T).astype(np.float32)
    visible = np.outer(rows_seen, columns_seen)
    colours = map_colours(placed, 0.0, style.full, 0.0, style.opacity).astype(np.float64)
    alpha = colours[..., 3:] / 255 * (visible & (np.abs(placed) >= style.threshold))[..., None]
    strength = np.where(visible, PICTURE_OPACITY, _UNSEEN_OPACITY)
    grey = 255 * (1 - strength) + strength * (picture @ _GREY)
    return np.rint(alpha * colours[..., :3] + (1 - alpha) * grey[..., None]).astype(np.uint8)


def _cells(row: Row, style: Style, with_picture: bool) -> list[UInt8[np.ndarray, "height width 3"]]:
    picture, seen = row.picture, row.seen
    if picture is not None:
        height, width = picture.shape[:2]
        new_height, new_width = _fitting(height, width, style.side)
        picture = np.asarray(Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.LANCZOS))
        across, down = new_width / width, new_height / height
        seen = (seen[0] * across, seen[1] * down, seen[2] * across, seen[3] * down)
    cells = [overlay(picture, seen, each, style) for each in row.maps]
    if not with_picture:
        return cells
    first = np.full_like(cells[0], 255) if picture is None else picture
    return [first, *cells]


def _fitting(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with `side` pixels on the longer side."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _weights(
    pixels: int, begin: float, end: float, patches: int, squares: bool
) -> tuple[Float[np.ndarray, "pixel patch"], np.ndarray]:
    """Each patch's weight in each pixel along one axis, and which pixels the patches between begin and end cover."""
    places = (np.arange(pixels) + 0.5 - begin) / (end - begin) * patches
    inside = (places >= 0) & (places < patches)
    if squares:
        return (np.clip(np.floor(places), 0, patches - 1)[:, None] == np.arange(patches)).astype(np.float64), inside
    # Bilinear between the patches' centres; beyond the first and the last centre, their values.
    centred = np.clip(places - 0.5, 0, patches - 1)
    return np.maximum(0, 1 - np.abs(centred[:, None] - np.arange(patches))), inside


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, y: int, legend: Legend, style: Style) -> None:
    small = font(12)
    width = page.width - 2 * _MARGIN
    steps = np.linspace(-style.full, style.full, width, dtype=np.float32)
    colours = map_colours(steps, 0.0, style.full, 0.0, style.opacity).astype(np.float64)
    alpha = colours[:, 3:] / 255 * (np.abs(steps) >= style.threshold)[:, None]
    bar = np.rint(alpha * colours[:, :3] + (1 - alpha) * 255).astype(np.uint8)
    page.paste(Image.fromarray(np.tile(bar, (_BAR_HEIGHT, 1, 1))), (_MARGIN, y + _LINE))
    draw.rectangle((_MARGIN - 1, y + _LINE - 1, _MARGIN + width, y + _LINE + _BAR_HEIGHT), outline=LIGHT.faint)
    half = width // 2 - _GAP
    draw.text((_MARGIN, y), shortened_to(legend.negative, half, small), LIGHT.ink, small)
    draw.text((_MARGIN + width, y), shortened_to(legend.positive, half, small), LIGHT.ink, small, anchor="ra")
    below = y + _LINE + _BAR_HEIGHT + 3
    draw.text((_MARGIN, below), f"−{style.full:.2g}", LIGHT.soft, small)
    draw.text((_MARGIN + width / 2, below), "0", LIGHT.soft, small, anchor="ma")
    draw.text((_MARGIN + width, below), f"+{style.full:.2g}", LIGHT.soft, small, anchor="ra")
    unit = legend.unit + (f"; no colour within ±{style.threshold:.2g}" if style.threshold else "")
    draw.text((_MARGIN, below + _LINE), shortened_to(unit, width, small), LIGHT.soft, small)
