"""Blur and grain: the styles that change a finished image.

Outlines and pencil strokes are drawn with the objects, in patches.py, and shadows in drawing.py.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from headspan.world.stream import noise_bytes

Image = Float32[np.ndarray, "3 side side"]

# Number of grains along a side, and the largest change of a channel, of 255.
_GRAINS, _GRAIN = 64, 34.0
# Number of binomial kernels of three taps, applied in turn. Each has a variance of half a pixel; together they are
# nearly a Gaussian.
_BLURS = 3


def blur(image: Image) -> Image:
    """Blur with a standard deviation of about 1.2 pixels of 64; edge pixels are repeated outwards."""
    side = image.shape[-1]
    # Larger images have taps further apart.
    step = max(1, round(side / 64))
    for _ in range(_BLURS):
        for axis in (1, 2):
            padding = [(step, step) if each == axis else (0, 0) for each in range(3)]
            padded = np.pad(image, padding, mode="edge")
            before = padded[:, : -2 * step] if axis == 1 else padded[:, :, : -2 * step]
            after = padded[:, 2 * step :] if axis == 1 else padded[:, :, 2 * step :]
            image = (before + after) * np.float32(0.25) + image * np.float32(0.5)
    return image


def grain(noise: int, side: int) -> Float32[np.ndarray, "side side"]:
    """Film grain, to be added to all three channels."""
    # The key differs from the background's; otherwise grain and specks would coincide.
    raw = noise_bytes(noise + 2**32, _GRAINS * _GRAINS).reshape(_GRAINS, _GRAINS)
    values = (raw.astype(np.float32) - np.float32(127.5)) * np.float32(_GRAIN / 127.5)
    at = np.arange(side) * _GRAINS // side
    return values[at][:, at]
