"""Draw Concept Consistency Scores beside chance: the grid of all heads, and how many heads have each score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from headspan.concepts.labels import Labels
from headspan.concepts.nulls import LEVEL, ConsistencyChance
from headspan.plots.heads import draw_heads
from headspan.plots.levels import CCS
from headspan.plots.scores import draw_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In a cell of the grid; `nulls.UNLABELLED` is too long for it.
_UNLABELLED = "unlabelled"


def draw_scores(
    labels: Labels, scores: Int[np.ndarray, "layer head"], chance: ConsistencyChance | None, ax: Axes | None
) -> Axes:
    """Draw every head's score, and its label if the score beats chance or if chance is not known."""
    beats = labels.labelled if chance is None else chance.beating() & labels.labelled
    words = [
        [name if name and shown else _UNLABELLED for name, shown in zip(names, row, strict=True)]
        for names, row in zip(labels.concepts, beats.tolist(), strict=True)
    ]
    title, legend = f"{int(beats.sum())} of {beats.size} heads labelled", "CCS"
    if chance is not None:
        title += f"; expected by chance: {chance.expected_beating():.1f}"
        legend += f"; ○ and “{_UNLABELLED}”: chance reaches the score (p ≥ {LEVEL:g})"
    return draw_heads(
        labels.layers,
        scores,
        [[f"{score}" for score in row] for row in scores.tolist()],
        level_names=CCS,
        title=title,
        legend=legend,
        words=words,
        faint=~beats,
        ringed=None if chance is None else ~beats,
        ax=ax,
    )


def draw_counts_of_scores(
    scores: Int[np.ndarray, "layer head"], expected_at_k: Sequence[float] | None, ax: Axes | None
) -> Axes:
    """Draw how many heads have each score, beside the expected numbers."""
    counts = np.bincount(scores.ravel(), minlength=len(CCS)).tolist()
    expected = None if expected_at_k is None else [share * scores.size for share in expected_at_k]
    return draw_counts(counts, expected, title=f"Scores of {scores.size:,} heads", ax=ax)
