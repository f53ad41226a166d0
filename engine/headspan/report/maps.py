"""A map of the report as a small picture, laid over the image in grey; `explore.maps.centred_maps` computes maps."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float32
from PIL import Image

from headspan.plots.colours import map_colours


def overlay(deviations: Float32[np.ndarray, "rows columns"], threshold: float, full: float) -> bytes:
    """The map as a WebP picture of one pixel for each patch, in the colours of `map_colours`."""
    buffer = io.BytesIO()
    Image.fromarray(map_colours(deviations, threshold, full)).save(buffer, "WEBP", lossless=True, exact=True, method=4)
    return buffer.getvalue()
