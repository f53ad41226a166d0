"""TopK: the k largest activations of each vector.

Formula: `z = ReLU(TopK(W_enc (x − b) + c))`, Gao et al., "Scaling and evaluating sparse autoencoders" (arXiv
2406.04093). Settings: the TopK baseline of group-sparse autoencoders on CLIP's embeddings (32 of 16 times the width).
"""

from __future__ import annotations

from typing import ClassVar

from headspan.features.learners.autoencoder import Autoencoder
from headspan.features.learners.kinds import TOPK


class TopK(Autoencoder):
    """Keeps the k largest activations of each vector."""

    kind: ClassVar[str] = TOPK
