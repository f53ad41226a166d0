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
    """The route of the host called `exact` or `fast`; `gpu` takes `fast` for what a GPU does not decode.

    Raises SettingsError if its library cannot be loaded.
    """
    if name == "exact":
        return fill_exact
    try:
        # Imported here, since `exact` needs neither torch nor simplejpeg.
        from headspan.decode.fast import fill_fast
    except ImportError as error:
        raise SettingsError(
            f"--decode {name} needs simplejpeg, which cannot be loaded here ({one_line(error)}); pip install "
            "simplejpeg, or give --decode exact"
        ) from error
    return fill_fast
