"""What a style does to a finished image: blur and grain.

Outlines and pencil strokes belong to objects and are made with them, in patches.py; shadows in drawing.py.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from headspan.world.stream import noise_bytes

Image = Float32[np.ndarray, "3 side side"]

# Grains are a sixty-fourth of the side, and differ by so much to either side, of 255.
_GRAINS, _GRAIN = 64, 34.0
# Binomial kernels of three taps, one after the other, are nearly a Gaussian; variance half a pixel each.
_BLURS = 3


def blur(image: Image) -> Image:
    """Blurred by some 1.2 pixels of 64 (standard deviation), edges repeated."""
    side = image.shape[-1]
    # At other sides the taps lie further apart or in one place.
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
    """Film grain to be added to all three colours."""
    # Another key than the background's, whose specks would else be seen in it.
    raw = noise_bytes(noise + 2**32, _GRAINS * _GRAINS).reshape(_GRAINS, _GRAINS)
    values = (raw.astype(np.float32) - np.float32(127.5)) * np.float32(_GRAIN / 127.5)
    at = np.arange(side) * _GRAINS // side
    return values[at][:, at]
