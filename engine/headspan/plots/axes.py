"""Axes to draw on, and the colours that suit their background.

matplotlib is imported when the first plot is drawn. Nothing is shown, and neither matplotlib's settings nor figures
other than the plot's own are changed.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from headspan.errors import HeadspanError
from headspan.plots.colours import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

# A share of white at which a background counts as light.
_MIDDLE = 0.5


def pyplot() -> ModuleType:
    """matplotlib's pyplot. Raises HeadspanError if matplotlib is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise HeadspanError("plot needs matplotlib, which is not installed; pip install 'headspan[plot]'") from error
    return plt


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """`ax`, or the axes of a new pyplot figure of that size in inches. Raises HeadspanError as `pyplot` does."""
    plt = pyplot()
    if ax is not None:
        return ax
    _, new = plt.subplots(figsize=(width, height), layout="constrained")
    return new


def theme_of(ax: Axes) -> Theme:
    """The colours for the axes' background, or for what is behind it where it is transparent."""
    from matplotlib.colors import to_rgb, to_rgba

    figure = ax.get_figure()
    # White paper, unless words are drawn in a light colour.
    behind = np.array([1.0, 1.0, 1.0]) if _luminance(to_rgb(ax.xaxis.label.get_color())) < _MIDDLE else np.zeros(3)
    for face in (figure.get_facecolor() if figure is not None else None, ax.get_facecolor()):
        if face is not None:
            *colour, alpha = to_rgba(face)
            behind = alpha * np.array(colour) + (1 - alpha) * behind
    return LIGHT if _luminance(behind) >= _MIDDLE else DARK


def size_of(ax: Axes) -> tuple[float, float]:
    """The axes' width and height in inches."""
    figure = ax.get_figure()
    assert figure is not None
    box = ax.get_window_extent()
    return float(box.width) / figure.dpi, float(box.height) / figure.dpi


def fitted(text: str, width: float, points: float) -> str:
    """`text`, cut with an ellipsis to what `width` inches hold at a font size of `points`."""
    # The average letter is half as wide as the font is high.
    letters = int(width * 72 / (0.56 * points))
    return text if len(text) <= letters else text[: max(1, letters - 1)].rstrip() + "…"


def plain_text(text: Text) -> None:
    """Show the words as they are: dollar signs are no formulas."""
    text.set_parse_math(False)


def _luminance(colour: np.ndarray | tuple[float, ...]) -> float:
    return float(np.dot(colour, (0.2126, 0.7152, 0.0722)))
