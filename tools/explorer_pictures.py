"""Make the pictures of the explorer's page in the guide and the README: `engine/explorer*.png`.

`python -m tools.explorer_pictures headspan-demo/run.zarr` serves the demo's store, and writes them with Playwright and
an installed Chromium or Chrome. `explorer.png` shows a head's screen, `explorer_clicks.png` the three clicks from the
first screen to where a head sees stripes, and `explorer_dropped.png` a picture that was dropped in.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from headspan.world import render, scene
from tools.picture import with_palette

OUT = Path(__file__).resolve().parents[1] / "engine"
_BROWSERS = ("chromium", "google-chrome", "chromium-browser")
_TEXT = "stripes"
_GAP = 24
# A scene that is in no store of the demo, and what is asked about it.
_SEED, _NUMBER, _DROPPED_TEXT = 7, 4, "a red heart"
# What a browser hands to a page when a file of these bytes is dropped.
_TRANSFER = """bytes => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([new Uint8Array(bytes)], "photo.png", { type: "image/png" }));
  return transfer;
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, help="the store of a demo")
    flags = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        parser.error(f"needs one of {', '.join(_BROWSERS)}; install one of them")
    with served(flags.store) as address, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        options: dict[str, Any] = {"color_scheme": "light", "reduced_motion": "reduce", "device_scale_factor": 1.5}
        tab = chromium.new_page(viewport={"width": 1080, "height": 800}, **options)
        write(beside(clicks(tab, address)), OUT / "explorer_clicks.png")
        tab.set_viewport_size({"width": 1240, "height": 760})
        write(dropped(tab, address), OUT / "explorer_dropped.png")
        write(head(tab, tab.url.partition("#/")[2].partition("/")[0], address), OUT / "explorer.png")
        chromium.close()


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Serve the explorer of a store; yield its address."""
    command = [sys.executable, "-m", "headspan", "explore", str(store), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split("ready at ")[1].split()[0].rstrip("/")
        finally:
            server.terminate()


def clicks(tab: Any, address: str) -> list[Image.Image]:
    """The screens on the way from the first one to the map of the text in an image."""
    tab.goto(address)
    found = []
    tab.locator(".cell").first.wait_for()
    tab.get_by_role("combobox", name="Search heads").press_sequentially(_TEXT)
    choice = tab.get_by_role("option", name=re.compile("Which heads carry"))
    choice.hover()
    found.append(shown(tab))
    choice.click()
    first = tab.get_by_role("table").get_by_role("link").first
    first.hover()
    found.append(shown(tab))
    first.click()
    image = tab.get_by_role("list", name=re.compile("highest")).get_by_role("link").first
    image.hover()
    found.append(shown(tab))
    image.click()
    tab.get_by_role("heading", name="Where", exact=True).wait_for()
    found.append(shown(tab))
    return found


def head(tab: Any, store: str, address: str) -> Image.Image:
    """The screen of the head that carries the text most, its plane coloured by the text's score."""
    tab.goto(f"{address}/#/{store}/text?text={_TEXT}")
    name = tab.get_by_role("table").get_by_role("link").first.inner_text().split()[0]
    tab.goto(f"{address}/#/{store}/head/{name}?text={_TEXT}&by=text:{_TEXT}")
    plane = tab.get_by_role("application")
    plane.wait_for()
    shown(tab)
    box = plane.bounding_box()
    # The legend stands below the plane.
    bottom = box["y"] + box["height"] + 64
    clip = {"x": 0, "y": 0, "width": tab.viewport_size["width"], "height": bottom}
    return Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip))).convert("RGB")


def dropped(tab: Any, address: str) -> Image.Image:
    """The screen of a picture that was dropped on the first screen, and a text that was typed there."""
    tab.goto(address)
    tab.locator(".cell").first.wait_for()
    encoded = io.BytesIO()
    Image.fromarray(render([scene(_SEED, "held_out", _NUMBER)], side=512)[0]).save(encoded, "PNG")
    tab.dispatch_event("body", "drop", {"dataTransfer": tab.evaluate_handle(_TRANSFER, list(encoded.getvalue()))})
    tab.get_by_role("heading", name="Where", exact=True).wait_for()
    # The page chooses a text by itself first.
    shown(tab)
    box = tab.get_by_role("main").get_by_role("combobox").first
    box.fill(_DROPPED_TEXT)
    box.press("Enter")
    box.blur()
    shown(tab)
    foot = tab.get_by_role("heading", name="Near it").bounding_box()
    clip = {"x": 0, "y": 0, "width": tab.viewport_size["width"], "height": foot["y"] + 420}
    return Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=clip))).convert("RGB")


def shown(tab: Any) -> Image.Image:
    """What the window shows once everything has arrived."""
    tab.wait_for_load_state("networkidle")
    tab.wait_for_timeout(1500)
    return Image.open(io.BytesIO(tab.screenshot())).convert("RGB")


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size as two columns."""
    width, height = (side // 2 for side in pictures[0].size)
    rows = -(-len(pictures) // 2)
    found = Image.new("RGB", (2 * width + _GAP, rows * height + (rows - 1) * _GAP), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, 2)
        small = picture.resize((width, height), Image.Resampling.LANCZOS)
        found.paste(small, (column * (width + _GAP), row * (height + _GAP)))
    return found


def write(picture: Image.Image, path: Path) -> None:
    """Write a picture of few colours, which is small."""
    with_palette(picture).save(path, optimize=True)
    print(f"{path}: {picture.width} × {picture.height}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
