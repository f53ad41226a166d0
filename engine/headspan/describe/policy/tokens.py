"""The length of descriptions in tokens, and whether a language model's context holds prompts with descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headspan.errors import ModelError, counted

# Tokens of a description, as in the published run.
TOKENS = 32


def check_context(model: Any, tokenizer: Any, prompts: Sequence[str], tokens: int, name: str) -> None:
    """Raise ModelError if the longest prompt and a description of `tokens` tokens exceed the context of a model."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is None or not prompts:
        return
    longest = max(map(len, tokenizer(list(dict.fromkeys(prompts)))["input_ids"]))
    if longest + tokens > context:
        raise ModelError(
            f"{name}: its context is {counted(context, 'token')}, but the longest prompt has {longest:,} and a "
            f"description up to {tokens:,}; choose another language model, or shorter descriptions"
        )
