"""What the embeddings would be without some heads: mean ablation, as arithmetic on a store.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024: a head's direct contribution is replaced by its mean over
images. This is the direct effect alone: what later layers made of the head is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from headspan.analyse.neighbours import Head
from headspan.store.reader import Store


def mean_ablated(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """Embeddings over `‖embedding‖` (not renormalised) with the contributions of `heads` at their means."""
    embeddings = store.embedding / store.norm[:, 2:]
    for layer, head in dict.fromkeys(heads):
        contributions = store.heads(layer, head)
        # Images that failed are NaN rows, and have no part in the mean.
        embeddings -= contributions - np.nanmean(contributions, axis=0)
    return embeddings
