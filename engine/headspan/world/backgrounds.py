"""Draw backgrounds: two tones of one colour, and the share of the second tone at each pixel.

As in shapes.py, pixels are computed by exactly rounded operations only. Random values come from the scene's noise key.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from headspan.world.factors import Scene
from headspan.world.stream import noise_bytes
from headspan.world.textures import ramp

# Number of specks and of clouds along a side.
_SPECKS, _CLOUDS = 32, 4


def second_share(scene: Scene, side: int) -> Float32[np.ndarray, "side side"]:
    """The share of the background's second colour at each pixel, from 0 to 1."""
    if scene.background == "plain":
        return np.zeros((side, side), np.float32)
    if scene.background == "speckled":
        noise = noise_bytes(scene.noise, _SPECKS * _SPECKS).reshape(_SPECKS, _SPECKS)
        speck = np.arange(side) * _SPECKS // side
        return (noise < 64).astype(np.float32)[speck][:, speck]
    if scene.background == "cloudy":
        return _clouds(scene.noise, side)
    # From -0.5 to 0.5 across the middle of the image, along the scene's direction.
    at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side) - np.float32(0.5)
    along = at * np.float32(math.cos(scene.ground_turn)) + (at * np.float32(math.sin(scene.ground_turn)))[:, None]
    if scene.background == "gradient":
        return np.clip(along * np.float32(0.9) + np.float32(0.5), 0, 1)
    return ramp(along * np.float32(side))


def _clouds(noise: int, side: int) -> Float32[np.ndarray, "side side"]:
    """Random values on a coarse grid, interpolated with cubic Hermite weights."""
    points = _CLOUDS + 1
    heights = noise_bytes(noise, points * points).astype(np.float32).reshape(points, points) / np.float32(255)
    at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) * np.float32(_CLOUDS / side)
    low = at.astype(np.int64)
    share = at - low
    share = share * share * (3 - 2 * share)
    rows = heights[low] + share[:, None] * (heights[low + 1] - heights[low])
    return rows[:, low] + share * (rows[:, low + 1] - rows[:, low])


def paint_grounds(scenes: Sequence[Scene], side: int, canvas: Float32[np.ndarray, "scene 3 side side"]) -> None:
    """Fill each scene's part of the canvas with its background, in place; values are from 0 to 255."""
    for scene, part in zip(scenes, canvas, strict=True):
        first, second = (np.array(ground, np.float32)[:, None, None] for ground in (scene.ground, scene.second_ground))
        if scene.background == "plain":
            part[:] = first
        else:
            np.add(first, second_share(scene, side) * (second - first), out=part)
