"""What tasks lose without heads: groups beside random heads, and single heads by their score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headspan.plots.axes import axes_or_new, plain_text, size_of, theme_of
from headspan.plots.levels import CCS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The height of a row of `draw_changes` in inches, and of the axis below.
_ROW, _AXIS = 0.26, 0.9


@dataclass(frozen=True, slots=True)
class Change:
    """A change with its interval, and the mean and range of random heads; None without random heads."""

    value: float
    low: float
    high: float
    random: tuple[float, float, float] | None = None


def draw_changes(
    tasks: Mapping[str, Mapping[str, Change]], *, measure: str, title: str, ax: Axes | None = None
) -> Axes:
    """Draw the change of every task, by name, without each group of heads: a point with its interval.

    A bar behind it is the range of random heads, and a line in the bar their mean. Returns the axes. Raises
    HeadspanError if matplotlib is not installed.
    """
    rows = sum(len(groups) + 1 for groups in tasks.values())
    ax = axes_or_new(ax, 6.0, _AXIS + _ROW * rows)
    theme = theme_of(ax)
    place, names, ticks, randoms = 0, [], [], False
    for task, groups in tasks.items():
        # The heading of the task's rows.
        names.append(task)
        ticks.append(place)
        ax.axhline(place - 0.5, color=theme.faint, linewidth=0.8)
        for group, change in groups.items():
            place += 1
            names.append(f"{group}  ")
            ticks.append(place)
            if change.random is not None:
                mean, low, high = change.random
                ax.barh(place, high - low, left=low, height=0.62, color=theme.soft, alpha=0.3, linewidth=0)
                ax.plot([mean, mean], [place - 0.31, place + 0.31], color=theme.soft, linewidth=1.4)
                randoms = True
            ax.plot([change.low, change.high], [place, place], color=theme.accent, linewidth=1.6)
            ax.plot([change.value], [place], color=theme.accent, marker="o", markersize=5)
        place += 1
    ax.axvline(0, color=theme.ink, linewidth=0.8)
    ax.set_ylim(place - 0.4, -0.6)
    ax.set_yticks(ticks, names)
    for name, label in zip(names, ax.get_yticklabels(), strict=True):
        plain_text(label)
        label.set_fontweight("bold" if name in tasks else "normal")
        label.set_fontsize(8)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel(measure, fontsize=8)
    plain_text(ax.xaxis.label)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    _legend(ax, theme.accent, theme.soft, randoms)
    return ax


def _legend(ax: Axes, own: str, random: str, randoms: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [Line2D([], [], color=own, marker="o", markersize=5, label="group, 95 % interval")]
    if randoms:
        words = "random heads of the same layers, 95 % range"
        handles.append(Patch(facecolor=random, alpha=0.3, label=words))
    # Below the axes, where there are no points.
    ax.legend(
        handles=handles,
        frameon=False,
        fontsize=8,
        ncols=len(handles),
        loc="upper left",
        bbox_to_anchor=(0, -0.5 / max(size_of(ax)[1], 0.5)),
        borderaxespad=0,
    )


def draw_single_heads(
    points: Sequence[tuple[int, int, float]], *, measure: str, title: str, ax: Axes | None = None
) -> Axes:
    """Draw what removing one head costs against its CCS; `points` are layer, CCS and cost of each head.

    Heads of later layers are darker. The line joins the mean cost of each score. Returns the axes. Raises HeadspanError
    if matplotlib is not installed.
    """
    ax = axes_or_new(ax, 5.2, 3.4)
    theme = theme_of(ax)
    layers = sorted({layer for layer, _, _ in points})
    width = 0.6 / max(len(layers), 1)
    for number, layer in enumerate(layers):
        own = np.array([(score, cost) for each, score, cost in points if each == layer], float)
        # Beside one another, in the order of the layers.
        shift = (number - (len(layers) - 1) / 2) * width
        colour = _colour(theme.levels[1:], number, len(layers))
        ax.scatter(
            own[:, 0] + shift, own[:, 1], s=22, color=colour, edgecolor=theme.soft, linewidth=0.4, label=f"L{layer}"
        )
    by_score = {score: [cost for _, each, cost in points if each == score] for score in range(len(CCS))}
    known = [score for score, costs in by_score.items() if costs]
    means = [float(np.mean(by_score[score])) for score in known]
    ax.plot(known, means, color=theme.ink, linewidth=1, marker="_", markersize=14, label="mean", zorder=0)
    ax.axhline(0, color=theme.soft, linewidth=0.8, zorder=0)
    ax.set(xlabel="CCS", xlim=(-0.5, len(CCS) - 0.5))
    ax.set_xticks(range(len(CCS)))
    plain_text(ax.yaxis.label)
    ax.set_ylabel(measure)
    ax.spines[["top", "right"]].set_visible(False)
    plain_text(ax.set_title(title, loc="left", size="medium"))
    ax.legend(frameon=False, fontsize=8, ncols=1 + (len(layers) > 6), loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def _colour(levels: Sequence[str], number: int, count: int) -> tuple[float, ...]:
    """A colour between the first and the last of `levels`."""
    from matplotlib.colors import LinearSegmentedColormap

    return tuple(LinearSegmentedColormap.from_list("layers", list(levels))(number / max(count - 1, 1)))
