"""The factors of the image world, and the description of a scene before it is drawn.

A scene shows either one kind of object, repeated `count` times, or two to four different objects. Lengths in a scene
are fractions of the image's side, so it can be drawn at any size. An object's colour, shape and texture form a triple,
and a seventh of all triples never occurs in the split `train`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headspan.errors import SettingsError

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "black", "white", "grey")
SHAPES = (
    "circle", "square", "triangle", "pentagon", "hexagon", "star",
    "heart", "cross", "ring", "crescent", "diamond", "arrow",
)  # fmt: skip
TEXTURES = ("solid", "striped", "dotted", "checkered", "gradient", "zigzag")
SIZES = ("small", "medium", "large")
COUNTS = (1, 2, 3, 4, 5, 6)
# Row by row from the top left.
POSITIONS = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
BACKGROUNDS = ("plain", "gradient", "two-tone", "speckled", "cloudy")
TONES = ("", "dark", "light")
STYLES = ("flat", "outlined", "sketch", "blurred", "shadowed", "grainy")
SPLITS = ("train", "held_out")

Colour = tuple[float, float, float]
Triple = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Thing:
    """One object: its factors, and the random values that vary within them. Colours are sRGB from 0 to 255."""

    colour: str
    shape: str
    texture: str
    size: str
    # Centre and radius as fractions of the side, y downwards. The shape fits into the circle of that radius.
    x: float
    y: float
    radius: float
    # Rotations of the shape and of the texture, in radians.
    turn: float
    texture_turn: float
    # The texture's period as a fraction of the side, and its shift along both axes as a fraction of the period.
    period: float
    shift: tuple[float, float]
    paint: Colour
    # The texture's second colour, a lighter or darker tone of the first.
    accent: Colour

    @property
    def position(self) -> str:
        """The cell of the 3 × 3 grid that contains the centre, one of POSITIONS."""
        return POSITIONS[3 * min(int(3 * self.y), 2) + min(int(3 * self.x), 2)]


@dataclass(frozen=True, slots=True)
class Scene:
    """What an image shows. Later objects lie above earlier ones; the first is the main object."""

    # Seed, split and index determine the whole scene.
    seed: int
    split: str
    index: int
    things: tuple[Thing, ...]
    # Whether all objects have the same colour, shape, texture and size.
    repeated: bool
    style: str
    background: str
    background_colour: str
    # `dark`, `light` or empty.
    background_tone: str
    # The background's two colours, which are tones of one colour, and the direction of their change in radians.
    ground: Colour
    second_ground: Colour
    ground_turn: float
    # The key of the noise in background and style.
    noise: int

    @property
    def count(self) -> int:
        """The number of objects."""
        return len(self.things)

    def metadata(self, side: int = 64) -> dict[str, Any]:
        """Every factor as JSON values; `centre` [x, y] and `radius` are in pixels of an image of that `side`.

        The n-th entry of `objects`, counted from 1, is value n of the mask.
        """
        return {
            "seed": self.seed,
            "split": self.split,
            "index": self.index,
            "side": side,
            "count": self.count,
            "repeated": self.repeated,
            "style": self.style,
            "background": self.background,
            "background_colour": self.background_colour,
            "background_tone": self.background_tone,
            "objects": [
                {
                    "shape": thing.shape,
                    "colour": thing.colour,
                    "texture": thing.texture,
                    "size": thing.size,
                    "position": thing.position,
                    "centre": [round(thing.x * side, 2), round(thing.y * side, 2)],
                    "radius": round(thing.radius * side, 2),
                }
                for thing in self.things
            ],
        }


def is_held_out(colour: str, shape: str, texture: str) -> bool:
    """Whether no training scene contains an object of this colour, shape and texture.

    The rule is a sum modulo a prime. Given any two of the three, it therefore holds out at most one of six textures,
    two of twelve colours or two of twelve shapes.
    """
    return (COLOURS.index(colour) + 3 * SHAPES.index(shape) + 5 * TEXTURES.index(texture)) % 7 == 0


def _triples(held_out: bool) -> tuple[Triple, ...]:
    every = ((colour, shape, texture) for colour in COLOURS for shape in SHAPES for texture in TEXTURES)
    return tuple(triple for triple in every if is_held_out(*triple) == held_out)


# The triples that a scene's main object may have, by split. Other objects always have a triple of `train`.
TRIPLES: dict[str, tuple[Triple, ...]] = {"train": _triples(False), "held_out": _triples(True)}


def check_split(split: str) -> None:
    """Raise SettingsError unless `split` is one of SPLITS."""
    if split not in SPLITS:
        raise SettingsError(f"split {split!r} does not exist; choose {' or '.join(SPLITS)}")
