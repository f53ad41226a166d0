"""The palette, its jitter, and the backgrounds on which an object of a colour is visible.

Contrast is distance in OKLab (Björn Ottosson, 2020), in which equal distances look about equally different. Whether a
colour is visible is decided for the palette's colours without jitter; the least contrasts leave room for the jitter.
"""

from __future__ import annotations

import colorsys
from functools import cache

from headspan.world.factors import COLOURS, TONES, Colour
from headspan.world.stream import Stream

WHITE: Colour = (250.0, 250.0, 250.0)
BLACK: Colour = (12.0, 12.0, 12.0)
PALETTE: dict[str, Colour] = {
    "red": (218.0, 32.0, 40.0),
    "orange": (248.0, 140.0, 24.0),
    "yellow": (250.0, 222.0, 48.0),
    "green": (42.0, 158.0, 58.0),
    "cyan": (56.0, 205.0, 218.0),
    "blue": (36.0, 78.0, 208.0),
    "purple": (128.0, 48.0, 172.0),
    "pink": (248.0, 130.0, 186.0),
    "brown": (122.0, 72.0, 34.0),
    "black": (22.0, 22.0, 24.0),
    "white": (244.0, 244.0, 242.0),
    "grey": (134.0, 134.0, 137.0),
}
# Colours whose tones have no name of their own: a light red is pink, and a dark orange is brown.
_TONED = {
    "dark": ("red", "green", "blue", "purple", "grey"),
    "light": ("yellow", "green", "blue", "purple", "grey"),
}
# Colours of which only one tone differs enough from the colour to show a texture.
_ONE_ACCENT = {"white": "dark", "yellow": "dark", "cyan": "dark", "black": "light"}
# Least OKLab distance of an object's first and second colour from both colours of its background.
PAINT_CONTRAST, ACCENT_CONTRAST = 0.16, 0.08

# A background's colour and tone.
Ground = tuple[str, str]
GROUNDS: tuple[Ground, ...] = tuple(
    (colour, tone) for colour in COLOURS for tone in TONES if not tone or colour in _TONED[tone]
)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """The weighted mean (1 - share) * first + share * second."""
    a, b, c = (one + share * (two - one) for one, two in zip(first, second, strict=True))
    return a, b, c


def accent_of(paint: Colour, tone: str) -> Colour:
    """The second colour of a texture on `paint`."""
    if tone == "dark":
        return mix(paint, BLACK, 0.58)
    return mix(paint, WHITE, 0.42 if lightness(paint) < 0.3 else 0.62)


def ground_of(colour: str, tone: str) -> Colour:
    """A background's first colour, before jitter."""
    paint = PALETTE[colour]
    return mix(paint, BLACK, 0.5) if tone == "dark" else mix(paint, WHITE, 0.55) if tone == "light" else paint


def second_ground_of(ground: Colour) -> Colour:
    """A background's second colour: a darker tone of a light first colour, a lighter tone of others."""
    return mix(ground, BLACK, 0.26) if lightness(ground) > 0.6 else mix(ground, WHITE, 0.2)


def jittered(paint: Colour, stream: Stream) -> Colour:
    """A random similar colour: hue changes by at most 5 degrees, saturation and value by some per cent."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in paint))
    hue += stream.between(-0.014, 0.014)
    saturation *= stream.between(0.9, 1.04)
    value = value * stream.between(0.93, 1.04) + stream.between(-0.01, 0.02)
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(saturation, 1), min(value, 1))
    return 255 * r, 255 * g, 255 * b


def oklab(paint: Colour) -> Colour:
    """OKLab lightness, green-red and blue-yellow coordinates of an sRGB colour."""
    r, g, b = (
        channel / 3294.6 if channel <= 10.31475 else ((channel / 255 + 0.055) / 1.055) ** 2.4 for channel in paint
    )
    long, medium, short = (
        (x * r + y * g + z * b) ** (1 / 3)
        for x, y, z in (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        )
    )
    return (
        0.2104542553 * long + 0.7936177850 * medium - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * medium + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * medium - 0.8086757660 * short,
    )


def lightness(paint: Colour) -> float:
    """OKLab's lightness, 0 to 1."""
    return oklab(paint)[0]


def contrast(first: Colour, second: Colour) -> float:
    """Distance in OKLab; black and white are 1 apart."""
    return sum((a - b) ** 2 for a, b in zip(oklab(first), oklab(second), strict=True)) ** 0.5


@cache
def accents(colour: str, ground: Ground) -> tuple[str, ...]:
    """The tones, `light` or `dark`, of the second colour that an object of this colour may have on this background.

    Empty if the object would not be visible on the background.
    """
    first = ground_of(*ground)
    grounds = (first, second_ground_of(first))
    paint = PALETTE[colour]
    if colour == ground[0] or min(contrast(paint, other) for other in grounds) < PAINT_CONTRAST:
        return ()
    tones = (_ONE_ACCENT[colour],) if colour in _ONE_ACCENT else ("light", "dark")
    return tuple(
        tone for tone in tones if min(contrast(accent_of(paint, tone), other) for other in grounds) >= ACCENT_CONTRAST
    )


@cache
def grounds_for(colours: frozenset[str]) -> dict[str, tuple[str, ...]]:
    """The background colours, each with its tones, on which objects of all these colours are visible."""
    found: dict[str, tuple[str, ...]] = {}
    for ground in GROUNDS:
        if all(accents(colour, ground) for colour in colours):
            found[ground[0]] = (*found.get(ground[0], ()), ground[1])
    return found
