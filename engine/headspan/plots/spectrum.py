"""The spectrum of a head: what its weights can write along each singular direction, and what images make it write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headspan.plots.axes import axes_or_new, plain_text, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_spectrum(
    squares: Float[np.ndarray, " direction"],
    shares: Float[np.ndarray, " direction"],
    *,
    title: str,
    ax: Axes | None = None,
) -> Axes:
    """Draw the shares of the squared singular values as a line, and those of the variance over images as bars.

    Returns the axes. Raises HeadspanError if matplotlib is not installed.
    """
    ax = axes_or_new(ax, 5.6, 3.2)
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    theme = theme_of(ax)
    numbers = np.arange(len(squares))
    ax.bar(numbers, np.nan_to_num(shares), color=theme.levels[3], width=0.8, label="variance over the images")
    ax.plot(numbers, squares, color=theme.ink, linewidth=1.4, marker=".", markersize=4, label="squared singular values")
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="singular direction", ylabel="share")
    ax.spines[["top", "right"]].set_visible(False)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    ax.legend(frameon=False, fontsize=8)
    return ax
