"""The curve of a head's explained share by number of texts, beside chance and the ceiling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headspan.plots.axes import axes_or_new, plain_text, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_shares(
    explained: Float[np.ndarray, " text"],
    chance: Float[np.ndarray, "bound text"] | None,
    *,
    title: str,
    marked: tuple[int, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the cumulative share that a head's first texts explain, from 0 to 1, by number of texts.

    `chance` holds the mean, the lower and the upper end of the draws' range, and the ceiling; None draws the curve
    alone. `marked` is a number of texts, and words to write there. Returns the axes. Raises HeadspanError if matplotlib
    is not installed.
    """
    ax = axes_or_new(ax, 5.2, 3.4)
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    theme = theme_of(ax)
    texts = np.arange(1, len(explained) + 1)
    own = theme.levels[4]
    if chance is not None:
        mean, low, high, ceiling = chance
        ax.fill_between(texts, low, high, color=theme.soft, alpha=0.3, linewidth=0, label="chance, 95 % range")
        ax.plot(texts, mean, color=theme.soft, linewidth=1.2, linestyle="--", label="chance, mean")
        ax.plot(texts, ceiling, color=theme.soft, linewidth=1.2, linestyle=":", label="ceiling: random directions")
    single = "o" if len(texts) == 1 else ""
    ax.plot(texts, explained, color=own, linewidth=2.2, marker=single, label="the head’s texts", zorder=3)
    if marked is not None:
        place = marked[0]
        if chance is not None:
            ax.plot([place, place], [chance[0][place - 1], explained[place - 1]], color=own, linewidth=1, zorder=2)
        ax.plot([place], [explained[place - 1]], color=own, marker="o", markersize=5, zorder=4)
        ax.annotate(
            marked[1],
            (place, explained[place - 1]),
            # Under the curve, to the right of the line, where neither the curve nor its own line passes.
            xytext=(6, -8),
            textcoords="offset points",
            va="top",
            size=8,
            color=theme.ink,
            bbox={"facecolor": ax.get_facecolor(), "edgecolor": "none", "alpha": 0.7, "pad": 1},
        )
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="texts", ylabel="share of the variance")
    ax.spines[["top", "right"]].set_visible(False)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    return ax
