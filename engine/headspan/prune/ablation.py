"""Mean ablation: embeddings in which the contributions of some heads are replaced by their means.

Source: Gandelsman, Efros, Steinhardt, ICLR 2024: a head's direct contribution is replaced by its mean over
images. This removes the direct effect only; what later layers computed from the head is unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from headspan.store.head_space import Head
from headspan.store.reader import Store


def mean_ablated(store: Store, heads: Sequence[Head]) -> Float32[np.ndarray, "images joint"]:
    """Embeddings divided by the original `‖embedding‖`, with the contributions of `heads` at their means.

    They are not normalised again. The means are over all good images, from the store's float64 moments. Raises
    StoreError if no unit is finished, and SettingsError if a head is not stored.
    """
    embeddings = store.embedding / store.norm[:, 2:]
    chosen = dict.fromkeys(heads)
    # A float32 sum over rows drifts by 1e-5 at millions of images and stops growing at tens of millions.
    moments = store.moments() if chosen else None
    for layer, head in chosen:
        assert moments is not None
        mean = moments.total[store.contents.layer_index(layer, head), head] / moments.count
        embeddings -= store.head(layer, head) - (mean @ store.head_directions(layer, head)).astype(np.float32)
    return embeddings
