"""Signed distances of the shapes: negative inside, in units of the radius, y downwards.

The formulas are Inigo Quilez's 2D distance functions, simplified where only distances near the edge matter. Pixels are
computed only by operations that IEEE 754 rounds exactly. A pixel therefore depends neither on the machine nor on how
many pixels are computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Grid = Float32[np.ndarray, "things height width"]

# The largest rotation of a shape to either side, in radians. With more, some shapes would look like others.
TURNS: dict[str, float] = {
    "circle": 0.0,
    "square": 0.3,
    "triangle": 0.5,
    "pentagon": 0.35,
    "hexagon": 0.3,
    "star": 0.4,
    "heart": 0.45,
    "cross": 0.35,
    "ring": 0.0,
    "crescent": math.pi,
    "diamond": 0.3,
    "arrow": math.pi,
}


def _length(x: Grid, y: Grid) -> Grid:
    return np.sqrt(x * x + y * y)


def _circle(x: Grid, y: Grid) -> Grid:
    return _length(x, y) - np.float32(0.9)


def _square(x: Grid, y: Grid) -> Grid:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.7)


def _triangle(x: Grid, y: Grid) -> Grid:
    return np.maximum(y, np.abs(x) * np.float32(0.8660254) - y * np.float32(0.5)) - np.float32(0.5)


def _pentagon(x: Grid, y: Grid) -> Grid:
    x = np.abs(x)
    lower = x * np.float32(0.9510565) + y * np.float32(0.3090170)
    upper = x * np.float32(0.5877853) - y * np.float32(0.8090170)
    return np.maximum(np.maximum(lower, upper), y) - np.float32(0.8)


def _hexagon(x: Grid, y: Grid) -> Grid:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(y, x * np.float32(0.8660254) + y * np.float32(0.5)) - np.float32(0.83)


def _star(x: Grid, y: Grid) -> Grid:
    x, y = np.abs(x), -y
    cosine, sine = np.float32(0.8090170), np.float32(0.5877853)
    # Fold all five points onto one.
    over = 2 * np.maximum(x * cosine - y * sine, 0)
    x, y = x - over * cosine, y + over * sine
    over = 2 * np.maximum(-x * cosine - y * sine, 0)
    x, y = np.abs(x + over * cosine), y + over * sine - np.float32(1)
    along, down = np.float32(0.47) * sine, np.float32(0.47) * cosine - np.float32(1)
    return (x * -down + y * along) / np.sqrt(along * along + down * down)


def _heart(x: Grid, y: Grid) -> Grid:
    scale = np.float32(1.5)
    x, y = np.abs(x) / scale, np.float32(0.58) - y / scale
    lobe = _length(x - np.float32(0.25), y - np.float32(0.75)) - np.float32(0.3535534)
    slope = np.float32(0.5) * np.maximum(x + y, 0)
    point = np.minimum(_length(x, y - 1), _length(x - slope, y - slope)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, point) * scale


def _cross(x: Grid, y: Grid) -> Grid:
    x, y = np.abs(x), np.abs(y)
    long, short = np.maximum(x, y), np.minimum(x, y)
    return np.maximum(long - np.float32(0.92), short - np.float32(0.33))


def _ring(x: Grid, y: Grid) -> Grid:
    return np.abs(_length(x, y) - np.float32(0.65)) - np.float32(0.27)


def _crescent(x: Grid, y: Grid) -> Grid:
    x = x + np.float32(-0.06)
    return np.maximum(_length(x, y) - np.float32(0.94), np.float32(0.66) - _length(x - np.float32(0.52), y))


def _diamond(x: Grid, y: Grid) -> Grid:
    return (np.abs(x) * np.float32(1.5) + np.abs(y) - 1) / np.float32(1.803)


def _arrow(x: Grid, y: Grid) -> Grid:
    y = np.abs(y)
    head = np.maximum(np.float32(0.02) - x, ((x - 1) * np.float32(0.9) + y * np.float32(0.95)) / np.float32(1.309))
    shaft = np.maximum(np.maximum(y - np.float32(0.34), np.float32(-0.93) - x), x - np.float32(0.1))
    return np.minimum(head, shaft)


DISTANCES: dict[str, Callable[[Grid, Grid], Grid]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "pentagon": _pentagon,
    "hexagon": _hexagon,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "crescent": _crescent,
    "diamond": _diamond,
    "arrow": _arrow,
}
