"""What the embeddings would be without some heads: mean ablation, as arithmetic on a store.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024: a head's direct contribution is replaced by its mean over
images. This is the direct effect alone: what later layers made of the head is left as it was.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from headspan.explore.neighbours import Head
from headspan.store.reader import Store


def mean_ablated(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """Embeddings over `‖embedding‖` (not renormalised) with the contributions of `heads` at their means.

    The means are those of all good images, from the moments, which are summed in float64. Raises StoreError where no
    unit is finished, SettingsError where a head is not stored.
    """
    embeddings = store.embedding / store.norm[:, 2:]
    chosen = dict.fromkeys(heads)
    # A mean of float32 rows drifts by 1e-5 at some millions of images, and stops moving at some tens of millions.
    moments = store.moments() if chosen else None
    for layer, head in chosen:
        assert moments is not None
        mean = moments.total[store.contents.layer_index(layer, head), head] / moments.count
        embeddings -= store.head(layer, head) - (mean @ store.head_directions(layer, head)).astype(np.float32)
    return embeddings
