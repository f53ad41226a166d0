"""How much of a texture's second colour is where, 0 to 1, antialiased.

Coordinates come turned and shifted, in periods; `period` is that length in pixels. As in shapes.py, only
exactly rounded operations touch pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Grid = Float32[np.ndarray, "things height width"]
PerThing = Float32[np.ndarray, "things 1 1"]


def ramp(distance_pixels: Grid) -> Grid:
    """Coverage of a pixel whose centre lies this far inside an edge."""
    return np.clip(distance_pixels + np.float32(0.5), 0, 1)


def triangle_wave(u: Grid) -> Grid:
    """0 at whole numbers, 0.5 halfway between them."""
    return np.abs(u - np.rint(u))


def _striped(u: Grid, v: Grid, period: PerThing) -> Grid:
    return ramp((np.float32(0.22) - triangle_wave(u)) * period)


def _dotted(u: Grid, v: Grid, period: PerThing) -> Grid:
    a, b = u - np.rint(u), v - np.rint(v)
    return ramp((np.float32(0.31) - np.sqrt(a * a + b * b)) * period)


def _checkered(u: Grid, v: Grid, period: PerThing) -> Grid:
    # A period holds two fields each way.
    a = ramp((np.float32(0.25) - triangle_wave(u)) * period)
    b = ramp((np.float32(0.25) - triangle_wave(v)) * period)
    return a + b - 2 * a * b


def _zigzag(u: Grid, v: Grid, period: PerThing) -> Grid:
    bent = u + np.float32(1.0) * triangle_wave(v * np.float32(0.8))
    return ramp((np.float32(0.22) - triangle_wave(bent)) * period * np.float32(0.78))


# Solid and gradient need no period; drawing.py makes them.
SECOND_SHARES: dict[str, Callable[[Grid, Grid, PerThing], Grid]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
}
