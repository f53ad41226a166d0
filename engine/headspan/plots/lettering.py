"""Fonts for images that PIL draws: one of the system's with many scripts, else the one that Pillow brings."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

# By their file names; Pillow looks for them in the system's folders.
_NAMES = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf", "arial.ttf")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@cache
def font(size: int) -> Font:
    """A font of that many pixels."""
    for name in _NAMES:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def shortened_to(text: str, width: int, letters: Font) -> str:
    """`text` on one line, with an ellipsis if it is wider than `width` pixels."""
    line = " ".join(text.split())
    if letters.getlength(line) <= width:
        return line
    kept = line
    while kept and letters.getlength(f"{kept}…") > width:
        kept = kept[: len(kept) - max(1, len(kept) // 20)]
    return f"{kept.rstrip()}…"
