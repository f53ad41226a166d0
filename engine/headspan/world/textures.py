"""Draw textures: the share of a texture's second colour at each pixel, from 0 to 1, antialiased.

Coordinates are already rotated and shifted, in units of the period; `period` is its length in pixels. As in shapes.py,
pixels are computed by exactly rounded operations only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

Grid = Float32[np.ndarray, "things height width"]
PerThing = Float32[np.ndarray, "things 1 1"]


def ramp(distance_pixels: Grid) -> Grid:
    """Coverage of a pixel whose centre is this distance inside an edge, from 0 to 1."""
    return np.clip(distance_pixels + np.float32(0.5), 0, 1)


def triangle_wave(u: Grid) -> Grid:
    """The distance to the nearest integer, from 0 to 0.5."""
    return np.abs(u - np.rint(u))


def _striped(u: Grid, v: Grid, period: PerThing) -> Grid:
    return ramp((np.float32(0.22) - triangle_wave(u)) * period)


def _dotted(u: Grid, v: Grid, period: PerThing) -> Grid:
    a, b = u - np.rint(u), v - np.rint(v)
    return ramp((np.float32(0.31) - np.sqrt(a * a + b * b)) * period)


def _checkered(u: Grid, v: Grid, period: PerThing) -> Grid:
    # A period contains two fields along each axis.
    a = ramp((np.float32(0.25) - triangle_wave(u)) * period)
    b = ramp((np.float32(0.25) - triangle_wave(v)) * period)
    return a + b - 2 * a * b


def _zigzag(u: Grid, v: Grid, period: PerThing) -> Grid:
    bent = u + np.float32(1.0) * triangle_wave(v * np.float32(0.8))
    return ramp((np.float32(0.22) - triangle_wave(bent)) * period * np.float32(0.78))


# Solid and gradient textures have no period; patches.py draws them.
SECOND_SHARES: dict[str, Callable[[Grid, Grid, PerThing], Grid]] = {
    "striped": _striped,
    "dotted": _dotted,
    "checkered": _checkered,
    "zigzag": _zigzag,
}
