"""The frontier of reward against divergence: what a language model gains as it moves away from the untrained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headspan.plots.axes import axes_or_new, plain_text, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Point:
    """A model on the frontier."""

    name: str
    kl: float
    reward: float
    # Standard errors, or spreads between seeds.
    kl_error: float = 0.0
    reward_error: float = 0.0


def draw_frontier(points: Sequence[Point], *, title: str, ax: Axes | None = None) -> Axes:
    """Draw points with their names and error bars, joined in the order of their divergence.

    Returns the axes. Raises HeadspanError if matplotlib is not installed.
    """
    ax = axes_or_new(ax, 5.2, 3.4)
    theme = theme_of(ax)
    order = sorted(points, key=lambda point: point.kl)
    ax.errorbar(
        [point.kl for point in order],
        [point.reward for point in order],
        xerr=[point.kl_error for point in order],
        yerr=[point.reward_error for point in order],
        color=theme.accent,
        ecolor=theme.soft,
        elinewidth=0.8,
        linewidth=1.2,
        marker="o",
        markersize=5,
    )
    for point in order:
        plain_text(
            ax.annotate(
                point.name,
                (point.kl, point.reward),
                xytext=(5, -9),
                textcoords="offset points",
                fontsize=8,
                color=theme.ink,
            )
        )
    ax.set_xlabel("divergence from the untrained model (nats)", fontsize=8)
    ax.set_ylabel("mean reward", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.margins(x=0.15)
    ax.spines[["top", "right"]].set_visible(False)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    return ax
