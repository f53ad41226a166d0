"""The grid of heads: a row for each layer, a column for each head, coloured by the level of a measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from headspan.plots.axes import axes_or_new, fitted, plain_text, size_of, theme_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Font sizes, and inches that a cell needs for its number and for words under it.
_NUMBER, _WORDS = 8.0, 7.5
_NUMBER_WIDTH, _WORDS_WIDTH, _WORDS_HEIGHT = 0.3, 0.62, 0.3


def draw_heads(
    layers: Sequence[int],
    levels: Int[np.ndarray, "layer head"],
    numbers: Sequence[Sequence[str]],
    *,
    level_names: Sequence[str],
    title: str,
    legend: str,
    words: Sequence[Sequence[str]] | None = None,
    faint: Bool[np.ndarray, "layer head"] | None = None,
    ringed: Bool[np.ndarray, "layer head"] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the heads of `layers`, coloured by `levels` 0 to 5, with a number and, if cells are wide enough, words.

    The words of `faint` heads are in italics; `ringed` heads have a small ring. `legend` stands above the names of the
    levels. Returns the axes. Raises HeadspanError if matplotlib is not installed.
    """
    rows, columns = levels.shape
    wide = 0.95 if words is not None else 0.7
    width = min(14.0, max(5.6, 0.7 + columns * (wide if columns <= 12 else 0.5)))
    ax = axes_or_new(ax, width, 1.5 + 0.38 * rows)
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    theme = theme_of(ax)
    ax.pcolormesh(
        np.arange(columns + 1) - 0.5,
        np.arange(rows + 1) - 0.5,
        levels,
        cmap=ListedColormap(theme.levels),
        vmin=-0.5,
        vmax=len(theme.levels) - 0.5,
        # Gaps between cells.
        edgecolors=ax.get_facecolor(),
        linewidth=2,
    )
    ax.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    ax.grid(False)
    step = 1 if columns <= 24 else 4
    ax.set_xticks(range(0, columns, step), [f"{head}" for head in range(0, columns, step)])
    ax.set_yticks(range(rows), [f"L{layer}" for layer in layers])
    ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    ax.set_xlabel("head", loc="left")
    ax.xaxis.set_label_position("top")
    ax.spines[:].set_visible(False)
    width, height = size_of(ax)
    cell, height = width / columns, height / rows
    with_words = words is not None and cell >= _WORDS_WIDTH and height >= _WORDS_HEIGHT
    for row in range(rows):
        for column in range(columns):
            colour = theme.on_levels[levels[row, column]]
            if cell >= _NUMBER_WIDTH:
                place = row - 0.17 if with_words else row
                ax.text(
                    column,
                    place,
                    numbers[row][column],
                    ha="center",
                    va="center",
                    size=_NUMBER,
                    color=colour,
                    weight="bold",
                )
            if with_words:
                assert words is not None
                style = "italic" if faint is not None and faint[row, column] else "normal"
                shown = fitted(words[row][column], cell - 0.08, _WORDS)
                plain_text(
                    ax.text(column, row + 0.2, shown, ha="center", va="center", size=_WORDS, color=colour, style=style)
                )
    if ringed is not None and ringed.any():
        y, x = np.nonzero(ringed)
        colours = [theme.on_levels[levels[row, column]] for row, column in zip(y, x, strict=True)]
        # A marker, not a letter, because not every font has a ring.
        ax.scatter(x + 0.38, y - 0.3, s=10, facecolors="none", edgecolors=colours, linewidths=0.8)
    ax.set_title(title, loc="left", size="medium")
    handles = [
        Patch(facecolor=colour, edgecolor=theme.soft, linewidth=0.4, label=name)
        for colour, name in zip(theme.levels, level_names, strict=True)
    ]
    ax.legend(
        handles=handles,
        title=legend,
        ncols=len(handles),
        loc="upper left",
        bbox_to_anchor=(0, -0.01),
        borderaxespad=0.2,
        frameon=False,
        alignment="left",
        fontsize=8,
        title_fontsize=8,
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    return ax
