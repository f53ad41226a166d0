"""Embed texts with the model's own text tower, as unit vectors in the joint space.

Descriptions are short and contexts are long (77 tokens). With causal attention and pooling at the end token, later
tokens have no effect, so the context is cut to the longest text of each batch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float32, Int
from torch import Tensor, nn

from headspan.errors import counted
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.model.hub import announced
from headspan.model.load import LoadedModel

# Characters of a text that a note shows.
_SHOWN = 60


@torch.inference_mode()
def encode_texts(
    model: LoadedModel,
    texts: Sequence[str],
    batch_size: int = 128,
    on_progress: Listener = ignore,
    on_cut: Callable[[list[str]], None] = lambda cut: None,
) -> Float32[np.ndarray, "text joint"]:
    """Embed texts as they are, without a template, on the CPU. Each vector is divided by its length.

    `on_cut` receives the texts that fill the model's context, whose ends may be cut; a note says so too. Raises
    ModelError if a package or file that the tokenizer needs is missing.
    """
    with announced(on_progress, f"fetching the tokenizer of {model.name}"):
        tokenizer = model.tokenizer()
    tokens = tokenizer(list(texts))
    lengths = _lengths(model.clip, tokens)
    # open_clip's tokenizers truncate silently, so a text that fills the context may have lost its end.
    full = [] if lengths is None else (lengths == tokens.shape[1]).nonzero().flatten().tolist()
    if full:
        cut = [texts[place] for place in full]
        said = (
            f"{len(cut):,} of {counted(len(texts), 'text')} filled the model's context of {tokens.shape[1]} tokens, so "
            f"the end may have been cut: {cut[0][:_SHOWN]}" + ("…" if len(cut[0]) > _SHOWN else "")
        )
        on_progress(Progress(NOTE, 0, None, said))
        on_cut(cut)
    # Texts of similar length form a batch, so that a long text does not lengthen many others.
    order = torch.arange(len(texts)) if lengths is None else lengths.argsort(stable=True)
    vectors: np.ndarray | None = None
    for start in range(0, len(texts), batch_size):
        batch = order[start : start + batch_size]
        context = tokens.shape[1] if lengths is None else int(lengths[batch].max())
        with nullcontext() if lengths is None else short_context(model.clip, context):
            found = model.clip.encode_text(tokens[batch, :context], normalize=True).float().numpy()
        if vectors is None:
            vectors = np.empty((len(texts), found.shape[1]), np.float32)
        vectors[batch.numpy()] = found
        on_progress(Progress("texts", start + len(batch), len(texts)))
    assert vectors is not None, "a pool holds at least one text"
    return vectors


def part_read(model: LoadedModel, text: str) -> str | None:
    """The part of a text that fits the model's context, if it is longer than that; None if the whole text is read."""
    tokenizer = model.tokenizer()
    context = tokenizer([""]).shape[1]
    # A token has at least a part of one letter's four bytes.
    padding = int(tokenizer([""], context_length=context + 4 * len(text))[0, -1])

    def fits(letters: int) -> bool:
        tokens = tokenizer([text[:letters]], context_length=context + 4 * len(text))[0]
        return bool((tokens[context:] == padding).all())

    if fits(len(text)):
        return None
    return text[: bisect_left(range(len(text)), True, key=lambda letters: not fits(letters)) - 1].rstrip()


def _lengths(clip: Any, tokens: Int[Tensor, "text context"]) -> Int[Tensor, " text"] | None:
    """Tokens of each text up to its end token; None if later tokens affect the text tower."""
    causal = type(clip) is open_clip.CLIP and clip.attn_mask is not None
    if not causal or clip.text_pool_type != "argmax":
        return None
    return tokens.argmax(dim=-1) + 1


@contextmanager
def short_context(clip: Any, context: int) -> Iterator[None]:
    """Limit the positions and the causal mask of `clip` to the first `context` tokens."""
    positions, mask = clip.positional_embedding, clip.attn_mask
    clip.positional_embedding = nn.Parameter(positions[:context], requires_grad=False)
    clip.attn_mask = mask[:context, :context]
    try:
        yield
    finally:
        clip.positional_embedding, clip.attn_mask = positions, mask
