"""Colours of the report and of the plots, on light and on dark pages.

The six levels differ in lightness first, so that colour-blind readers and grey prints can tell them apart. Needs no
matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

# Maps: orange for the text, blue against it; all common kinds of colour vision can tell them apart.
FOR, AGAINST = (214, 84, 10), (31, 84, 166)
# Opacity at the threshold and at full colour.
FAINTEST, STRONGEST = 0.3, 0.85
# Under a map, the image in grey is blended with white.
PICTURE_OPACITY = 0.5


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one kind of page."""

    page: str
    ink: str
    # Less important words, and lines.
    soft: str
    faint: str
    accent: str
    # Level 0 is grey: no effect, or the lowest score.
    levels: tuple[str, ...]
    # Words on each level.
    on_levels: tuple[str, ...]


LIGHT = Theme(
    page="#fdfdfb",
    ink="#1b2126",
    soft="#5c666f",
    faint="#e6e6e1",
    accent="#0f5477",
    levels=("#f0f0eb", "#d9e8e4", "#a8d2cf", "#61aeb9", "#2a7a9c", "#123e6b"),
    on_levels=("#1b2126", "#1b2126", "#1b2126", "#0d1a22", "#ffffff", "#ffffff"),
)
DARK = Theme(
    page="#13171a",
    ink="#e3e6e8",
    soft="#98a3ab",
    faint="#2a3035",
    accent="#83c4db",
    levels=("#1f2428", "#1c3945", "#1d5568", "#2b7a8c", "#5cb2b0", "#c6ecd2"),
    on_levels=("#c9d0d5", "#e3e6e8", "#ffffff", "#ffffff", "#0d1a1c", "#0d1a1c"),
)


def map_colours(
    deviations: Float32[np.ndarray, "*shape"],
    threshold: float,
    full: float,
    faintest: float = FAINTEST,
    strongest: float = STRONGEST,
) -> UInt8[np.ndarray, "*shape rgba"]:
    """The colour of each patch of a map, to be laid over the image in grey.

    A patch within the threshold is transparent. Beyond it orange is for the text and blue against it, and opacity grows
    from `faintest` to `strongest` at `full`.
    """
    size = np.abs(deviations)
    share = np.clip((size - threshold) / max(full - threshold, np.finfo(np.float32).tiny), 0, 1)
    opacity = np.where(size > threshold, faintest + (strongest - faintest) * share, 0)
    pixels = np.empty((*deviations.shape, 4), np.uint8)
    pixels[..., :3] = np.where(deviations[..., None] >= 0, np.array(FOR), np.array(AGAINST))
    pixels[..., 3] = np.rint(255 * opacity)
    # Transparent pixels of one colour take no space in a file.
    pixels[pixels[..., 3] == 0] = 0
    return pixels
