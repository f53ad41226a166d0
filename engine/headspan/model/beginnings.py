"""Embed texts that begin alike with a causal text tower: every common beginning is computed once.

With causal attention, a token's vectors depend on the tokens before it only. Sentences of a grammar share most of
theirs, so this takes a fraction of the time of embedding each text, and gives the same vectors up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float32, Int64
from torch import Tensor

from headspan.events import Listener, Progress, ignore
from headspan.model.load import LoadedModel

# Texts, neighbours in sorted order, whose keys and values are kept at the same time.
_AT_ONCE = 4096


def shares_beginnings(model: LoadedModel) -> bool:
    """Whether `encode_sharing` computes the model's text tower: open_clip's own, causal and without options."""
    clip = model.clip
    plain = type(clip) is open_clip.CLIP and clip.attn_mask is not None and clip.text_pool_type == "argmax"
    return plain and not isinstance(clip.text_projection, torch.nn.Linear)


@torch.inference_mode()
def encode_sharing(
    model: LoadedModel, texts: Sequence[str], on_progress: Listener = ignore
) -> Float32[np.ndarray, "text joint"]:
    """Unit vectors of texts, as `encode_texts` gives them, of a model for which `shares_beginnings` holds."""
    tokens = model.tokenizer()(list(texts)).numpy()
    order = np.lexsort(tokens.T[::-1])
    vectors = np.empty((len(texts), model.clip.text_projection.shape[1]), np.float32)
    for start in range(0, len(order), _AT_ONCE):
        rows = order[start : start + _AT_ONCE]
        vectors[rows] = _encode_sorted(model.clip, tokens[rows])
        on_progress(Progress("sentences", start + len(rows), len(order)))
    return vectors


def _encode_sorted(clip: Any, tokens: Int64[np.ndarray, "text context"]) -> Float32[np.ndarray, "text joint"]:
    """The vectors of neighbouring texts in sorted order. A node is a beginning that some of the texts share."""
    lengths = tokens.argmax(axis=1) + 1
    differs = np.ones(tokens.shape, bool)
    differs[1:] = tokens[1:] != tokens[:-1]
    # The first token by which a text differs from the one before it; none if they are equal.
    begins = np.where(differs.any(axis=1), differs.argmax(axis=1), tokens.shape[1])
    begins[0] = 0
    # For each place, the node of every text; and for each block, the nodes' keys and values.
    nodes: list[Int64[np.ndarray, " text"]] = []
    kept: list[list[Tensor]] = [[] for _ in clip.transformer.resblocks]
    ends: list[tuple[Int64[np.ndarray, " text"], Tensor]] = []
    for place in range(int(lengths.max())):
        first = np.flatnonzero((begins <= place) & (lengths > place))
        nodes.append(np.cumsum((begins <= place) & (lengths > place)) - 1)
        before = [torch.from_numpy(each[first]) for each in nodes]
        x = clip.token_embedding(torch.from_numpy(tokens[first, place])) + clip.positional_embedding[place]
        for block, earlier in zip(clip.transformer.resblocks, kept, strict=True):
            x = _block(block, x, earlier, before)
        ended = np.flatnonzero(lengths == place + 1)
        ends.append((ended, x[torch.from_numpy(nodes[place][ended])]))
    vectors = np.empty((len(tokens), clip.text_projection.shape[1]), np.float32)
    for rows, x in ends:
        vectors[rows] = F.normalize(clip.ln_final(x) @ clip.text_projection, dim=-1).float().numpy()
    return vectors


def _block(block: Any, x: Tensor, earlier: list[Tensor], before: Sequence[Tensor]) -> Tensor:
    """A block's output at one place; adds the place's keys and values to those of earlier places."""
    attention = block.attn
    heads, width = attention.num_heads, x.shape[-1]
    query, key_value = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias).split(
        [width, 2 * width], dim=-1
    )
    earlier.append(key_value)
    every = torch.stack([each[node] for each, node in zip(earlier, before, strict=True)], dim=1)
    keys, values = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in every.split(width, dim=-1))
    mixed = F.scaled_dot_product_attention(query.view(len(x), heads, 1, -1), keys, values)
    x = x + block.ls_1(attention.out_proj(mixed.squeeze(2).flatten(1)))
    output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return output
