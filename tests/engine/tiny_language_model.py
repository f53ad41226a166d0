"""Tiny causal language models with words as tokens, for tests of descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from headspan.describe.policy.silence import silent

PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"


def make_language_model(
    folder: Path, words: Sequence[str], *, width: int = 16, layers: int = 1, context: int = 64, seed: int = 0
) -> Path:
    """Write a Llama with random weights that knows `words`, and ends texts; returns the folder."""
    # Every process of the tests imports this module, and few need these, which take seconds.
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate([PAD, END, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=context,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        # Large enough for words to differ in their probability.
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]), silent():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
