"""Write a picture as a PNG file."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from headspan.frames import write_result


def write_png(path: str | Path, picture: Image.Image) -> None:
    """Write a picture, replacing an earlier file. Raises StoreError if the file cannot be written."""
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_result(path, data.getvalue(), "picture")
