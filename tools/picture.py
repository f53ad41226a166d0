"""Make the report's picture in the guide, `engine/report.png`: the top of a demo's report and its two best heads.

`python -m tools.picture headspan-demo/report.html` writes it with a headless Chromium or Chrome.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops

OUT = Path(__file__).resolve().parents[1] / "engine" / "report.png"
_WIDTH, _HEIGHT, _MARGIN = 1200, 3000, 36
_BROWSERS = ("chromium", "google-chrome", "chromium-browser")
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync")
# Only the header, the grid of heads and two of the strongest heads with their images.
_STYLE = """
header.page { margin-top: 36px; }
main > section { margin-top: 44px; }
main > section:not(:has(#grid)):not(:has(section.head)), section.head:not(.best), .best ~ .best ~ .best,
.tools, .source, .marks, #sections > .above, .glance .switch { display: none; }
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path, help="the report of a demo")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture (default: %(default)s)")
    flags = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(_BROWSERS)}; install one of them")
    page = flags.report.read_text(encoding="utf-8").replace("</style>", f"{_STYLE}</style>", 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "page.html").write_text(page, encoding="utf-8")
        screenshot = Path(folder) / "page.png"
        options = [
            f"--screenshot={screenshot}",
            f"--window-size={_WIDTH},{_HEIGHT}",
            f"--user-data-dir={folder}/profile",
        ]
        subprocess.run(
            [browser, *_FLAGS, *options, (Path(folder) / "page.html").as_uri()], check=True, capture_output=True
        )
        with Image.open(screenshot) as whole:
            picture = trimmed(whole.convert("RGB"))
    with_palette(picture).save(flags.out, optimize=True)
    print(f"{flags.out}: {picture.width} × {picture.height}, {flags.out.stat().st_size / 1000:.0f} kB")


def trimmed(picture: Image.Image) -> Image.Image:
    """`picture` without the empty space at its bottom, except a margin."""
    background = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    found = ImageChops.difference(picture, background).getbbox()
    bottom = min(picture.height, found[3] + _MARGIN) if found else picture.height
    return picture.crop((0, 0, picture.width, bottom))


def with_palette(picture: Image.Image) -> Image.Image:
    """`picture` in 256 colours, which halves the file; dithered, except for the background."""
    palette = picture.quantize(256)
    background = palette.getpixel((0, 0))
    indices = np.array(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    indices[(np.asarray(picture) == picture.getpixel((0, 0))).all(axis=-1)] = background
    found = Image.fromarray(indices, "P")
    found.putpalette(palette.getpalette() or ())
    return found


if __name__ == "__main__":
    main()
