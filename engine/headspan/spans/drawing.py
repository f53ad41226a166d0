"""Draw text spans beside chance: the grid of all heads, and one head's explained share by number of texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from headspan.plots.heads import draw_heads
from headspan.plots.levels import EXCESS, EXPLAINED, points
from headspan.plots.shares import draw_shares
from headspan.spans.nulls import Chance, HeadsAbove
from headspan.spans.stability import FIRST_TEXTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_grid(
    layers: Sequence[int],
    explained: Float[np.ndarray, "layer head"],
    chances: Sequence[Chance] | None,
    above: HeadsAbove | None,
    texts: int,
    ax: Axes | None,
) -> Axes:
    """Draw the heads' excess over chance, or without `chances` and `above` the share that `texts` texts explain."""
    rows, heads = explained.shape
    if chances is None or above is None:
        shares = explained.tolist()
        return draw_heads(
            layers,
            np.array([[EXPLAINED.of(share) for share in row] for row in shares]),
            [["–" if math.isnan(share) else f"{100 * share:.0f}" for share in row] for row in shares],
            level_names=EXPLAINED.names,
            title=f"Share of the variance that the first {texts} texts explain",
            legend="percent; this run recorded no chance to compare it with",
            ax=ax,
        )
    # A head without texts has no p, and is not above chance.
    effect = [chance.p <= above.level for chance in chances]
    levels = [EXCESS.of(chance.excess) if each else 0 for chance, each in zip(chances, effect, strict=True)]
    numbers = [points(chance.excess) for chance in chances]
    return draw_heads(
        layers,
        np.array(levels).reshape(rows, heads),
        [numbers[row * heads : (row + 1) * heads] for row in range(rows)],
        level_names=EXCESS.names,
        title=f"{above.above} of {above.heads} heads above chance; a pool without meaning: "
        f"{above.expected:.1f} ({above.low:.0f} to {above.high:.0f})",
        legend=f"excess of the first {texts} texts over chance, in points; ○ not above chance (p > {above.level:g})",
        ringed=~np.array(effect).reshape(rows, heads),
        ax=ax,
    )


def draw_head(
    name: str,
    texts: Sequence[str],
    explained: Float[np.ndarray, " text"],
    chances: Sequence[Chance] | None,
    ax: Axes | None,
) -> Axes:
    """Draw the share that a head's first texts explain; `chances` has an entry for each number of texts."""
    bounds = marked = None
    if chances is not None:
        bounds = np.array(
            [[chance.mean, chance.low, chance.high, chance.ceiling] for chance in chances], np.float64
        ).T.copy()
        first = chances[min(FIRST_TEXTS, len(chances)) - 1]
        # No words for a head without texts.
        if not math.isnan(first.excess):
            marked = first.texts, f"{points(first.excess)} points, p = {first.p:.2g}"
    return draw_shares(
        explained,
        bounds,
        title=f"{name}: “{texts[0]}”" if texts else name,
        marked=marked,
        ax=ax,
    )
