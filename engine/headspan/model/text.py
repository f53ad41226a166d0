"""Texts to unit vectors in the joint space, by the model's own text tower."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32

from headspan.model.load import LoadedModel
from headspan.records import Listener, Progress, ignore


@torch.inference_mode()
def encode_texts(
    model: LoadedModel, texts: Sequence[str], batch_size: int = 256, listen: Listener = ignore
) -> Float32[np.ndarray, "text joint"]:
    """Embed raw sentences, no template, each divided by its length; float32 on the CPU."""
    tokenizer = model.tokenizer()
    vectors = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenizer(list(texts[start : start + batch_size]))
        vectors.append(model.clip.encode_text(tokens, normalize=True).float().numpy())
        listen(Progress("texts", min(start + batch_size, len(texts)), len(texts)))
    return np.concatenate(vectors)
