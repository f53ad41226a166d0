"""Where an image's pixels go: the sizes and the place that the exact route gives them, for the resizing kernel."""

from __future__ import annotations

from headspan.config import Preprocess
from headspan.decode.exact import PIXELS_LIMIT, corner, resized
from headspan.decode.fast import rows_first
from headspan_kernels.reference import Placed


def placed(height: int, width: int, preprocess: Preprocess) -> Placed | None:
    """The resized size of an image, and where in it the model's input begins; None if the exact route refuses it."""
    new_height, new_width = resized(height, width, preprocess)
    if not 0 < new_height * new_width <= PIXELS_LIMIT:
        return None
    top, left = corner(new_height, new_width, preprocess.size)
    # Where the resized image is smaller, it is padded; an odd pixel goes below and to the right.
    missing_height, missing_width = preprocess.size[0] - new_height, preprocess.size[1] - new_width
    return Placed(
        new_height,
        new_width,
        -(missing_height // 2) if missing_height > 0 else top,
        -(missing_width // 2) if missing_width > 0 else left,
        rows_first(height, width, new_height, new_width),
    )
