"""Probabilities of texts for an image, as zero-shot classification has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from headspan.web.answers.images import ZeroShot

# What CLIP models multiply cosines by; OpenAI's are trained up to this bound. Stores do not hold the model's own.
LOGIT_SCALE = 100.0


def zero_shot(texts: Sequence[str], cosines: Float64[np.ndarray, " text"]) -> list[ZeroShot]:
    """Each text's cosine with an image, and its share in the softmax over the texts, in their order."""
    if not len(cosines):
        return []
    logits = LOGIT_SCALE * (cosines - cosines.max())
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return [
        ZeroShot(text=text, cosine=float(cosine), probability=float(share))
        for text, cosine, share in zip(texts, cosines, probabilities, strict=True)
    ]
