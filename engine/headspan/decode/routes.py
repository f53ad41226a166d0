"""The routes from an encoded image to pixels, by their names in `--decode`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from headspan.config import Preprocess
from headspan.decode.exact import fill_exact
from headspan.errors import SettingsError, one_line

# Takes an encoded image, the same image with its header read, the preprocessing, and the array to fill.
# Raises Undecodable if the image cannot be decoded; the array then holds anything.
Route = Callable[[bytes, Image.Image, Preprocess, UInt8[np.ndarray, "height width 3"]], None]


def route(name: str) -> Route:
    """The route called `exact` or `fast`. Raises SettingsError if its library cannot be loaded."""
    if name == "exact":
        return fill_exact
    try:
        # Imported here, since only `fast` needs torch and simplejpeg.
        from headspan.decode.fast import fill_fast
    except ImportError as error:
        raise SettingsError(
            f"--decode fast needs simplejpeg, which cannot be loaded here ({one_line(error)}); pip install simplejpeg, "
            "or give --decode exact"
        ) from error
    return fill_fast
