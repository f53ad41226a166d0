"""The curves of a training by reinforcement: reward, divergence, length and diversity at each step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from headspan.plots.axes import axes_or_new, plain_text, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Names in a log, with their words and units; the first is drawn against the left axis, the second against the right.
_REWARD, _KL = ("reward", "reward"), ("kl", "divergence from the untrained model (nats)")
# Points that a mean runs over at most.
_WINDOW = 25


def draw_training(log: Mapping[str, Sequence[float]], *, title: str, ax: Axes | None = None) -> Axes:
    """Draw the reward of each step as dots with its running mean, and the divergence on a second axis at the right.

    Returns the axes. Raises HeadspanError if matplotlib is not installed.
    """
    ax = axes_or_new(ax, 5.6, 3.2)
    from matplotlib.ticker import MaxNLocator

    theme = theme_of(ax)
    steps = np.asarray(log["step"], float)
    right = ax.twinx()
    for axis, (name, words), colour in ((ax, _REWARD, theme.accent), (right, _KL, theme.soft)):
        values = np.asarray(log[name], float)
        axis.plot(steps, values, ".", color=colour, markersize=3, alpha=0.4)
        axis.plot(*_running(steps, values), color=colour, linewidth=1.6)
        axis.set_ylabel(words, color=colour, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top"]].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step", fontsize=8)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    return ax


def _running(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The means of runs of neighbouring steps, each at the middle of its run."""
    window = max(1, min(_WINDOW, len(values) // 4))
    weights = np.ones(window) / window
    return np.convolve(steps, weights, "valid"), np.convolve(values, weights, "valid")
