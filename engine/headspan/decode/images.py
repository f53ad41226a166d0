"""What decoding gives: one image's pixels and its row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """One image, resized and cropped as the model wants it, not yet normalised."""

    row: int
    pixels: UInt8[np.ndarray, "height width 3"]
