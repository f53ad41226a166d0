"""Bars of how many heads have each score, beside the number that chance gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headspan.plots.axes import axes_or_new, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_counts(counts: Sequence[int], expected: Sequence[float] | None, *, title: str, ax: Axes | None = None) -> Axes:
    """Draw the number of heads with each score from 0, in the scores' colours, and a line at each expected number.

    Returns the axes. Raises HeadspanError if matplotlib is not installed.
    """
    ax = axes_or_new(ax, 4.6, 3.0)
    theme = theme_of(ax)
    scores = np.arange(len(counts))
    bars = ax.bar(scores, counts, color=theme.levels, edgecolor=theme.soft, linewidth=0.6)
    ax.bar_label(bars, [f"{count}" for count in counts], size=8, color=theme.ink, padding=2)
    if expected is not None:
        ax.hlines(expected, scores - 0.46, scores + 0.46, color=theme.ink, linewidth=2, label="expected by chance")
        ax.legend(frameon=False, fontsize=8)
    ax.set(xlabel="CCS", ylabel="heads")
    ax.set_xticks(scores)
    ax.margins(y=0.12)
    ax.set_ylim(bottom=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, loc="left", size="medium")
    return ax
