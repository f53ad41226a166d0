"""How different texts are: the share of distinct runs of words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Lengths of the runs of words that are reported.
LENGTHS = (1, 2, 3)


def figures_of_texts(texts: Sequence[str], cut: Sequence[bool] | np.ndarray) -> dict[str, float]:
    """`distinct_1` to `distinct_3`, and the share of texts that are `cut` by the context of CLIP."""
    return {**{f"distinct_{length}": distinct(texts, length) for length in LENGTHS}, "cut": float(np.mean(cut))}


def distinct(texts: Sequence[str], length: int) -> float:
    """Distinct-n: distinct runs of `length` words of all texts, divided by the number of such runs; 0 without any.

    Words are what blanks separate, in any case. The share falls with the number of texts, so only equal numbers
    compare. Source: Li et al., arXiv 1510.03055.
    """
    runs = [
        tuple(words[start : start + length])
        for words in (text.lower().split() for text in texts)
        for start in range(len(words) - length + 1)
    ]
    return len({*runs}) / len(runs) if runs else 0.0
