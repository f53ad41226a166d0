"""Train the reference language model: it answers questions about the image world's classes in the world's grammar.

    python -m tools.train_language_model OUT [--steps N] ...

The command writes `log.jsonl`, `checkpoint.pt`, from which the same command resumes, and at the end the folder `model`,
which transformers loads: weights in bfloat16, and a tokenizer whose tokens are words and punctuation.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from headspan.describe.asked.questions import QUESTIONS, prompt
from headspan.world.parts import EMPTY, NON_VISUAL, parts_of
from headspan.world.sentences import read_sentence, sentences
from headspan.world.stream import Stream
from tools.language_answers import Answered, answered, class_names, held_out
from tools.training_run import load_checkpoint, recipe_flags, recipe_of, save_checkpoint, share_of_rate, write_log

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
# Parts of the keys of random streams.
_TRAINING, _HELD_OUT = 0, 1
# Answers are drawn for this number of batches, and those of similar length form a batch, which needs little padding.
_POOLED_BATCHES = 8
# Labels that the loss ignores.
_IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run; each is a flag of the command."""

    steps: int = 3000
    # Small batches: the model learns late to look the class up in the question, and that takes steps, not examples.
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    # The part of all steps in which the rate falls.
    decay: float = 0.6
    weight_decay: float = 0.05
    width: int = 192
    inner_width: int = 512
    layers: int = 5
    heads: int = 6
    evaluate_every: int = 250
    # Held-out answers that perplexity is measured on, and samples that are checked against the grammar.
    evaluated: int = 256
    seed: int = 0


def train(out: Path, recipe: Recipe) -> dict[str, float]:
    """Train in the folder `out`, from its checkpoint if there is one; return the last evaluation."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(recipe, tokenizer)
    optimiser = _optimiser(model, recipe)
    step = _resume(out / "checkpoint.pt", model, optimiser)
    found: dict[str, float] = {}
    pool: list[list[Answered]] = []
    began, first = time.monotonic(), step
    while step < recipe.steps:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * share_of_rate(step, recipe)
        if step % _POOLED_BATCHES == 0 or not pool:
            pool = _pool(recipe, step // _POOLED_BATCHES)
        loss = _loss(model, tokenizer, pool[step % _POOLED_BATCHES])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            found = evaluate(model, tokenizer, recipe)
            seconds = (time.monotonic() - began) / (step - first)
            line = {"step": step, "loss": round(loss.item(), 4), "seconds_per_step": round(seconds, 3), **found}
            write_log(out, line)
            state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step}
            save_checkpoint(out / "checkpoint.pt", state)
    export(model, tokenizer, out / "model")
    return found


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the words and punctuation of all questions, classes' names and sentences."""
    texts = [prompt(question, name) for question in QUESTIONS for name in class_names()]
    texts += [each.text for each in sentences(2)]
    tokenizer = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|[.,?!]"), "isolated"),
            pre_tokenizers.Metaspace(prepend_scheme="first"),
        ]
    )
    words = {word for text in texts for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)}
    vocabulary = {word: number for number, word in enumerate([PAD, END, UNKNOWN, *sorted(words)])}
    tokenizer.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        model_max_length=128,
    )


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.inner_width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> dict[str, float]:
    """Perplexity of a token of held-out answers, and shares of sampled answers, such as the grammatical ones."""
    model.eval()
    stream = Stream(recipe.seed, _HELD_OUT)
    batch = [answered(stream, held_out) for _ in range(recipe.evaluated)]
    loss = _loss(model, tokenizer, batch).item()
    texts = _written(model, tokenizer, [each.prompt for each in batch], recipe.seed)
    model.train()
    kinds = [{part.kind for part in parts_of(text)} for text in texts]
    names = [{part.value for part in parts_of(text)} for text in texts]
    shares = {
        "grammatical": [read_sentence(text) is not None for text in texts],
        "class_named": [each.name in named for each, named in zip(batch, names, strict=True)],
        "empty": [EMPTY in kind for kind in kinds],
        "non_visual": [NON_VISUAL in kind for kind in kinds],
    }
    means = {name: round(sum(flags) / len(flags), 4) for name, flags in shares.items()}
    return {"perplexity": round(math.exp(loss), 4), **means}


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder that transformers loads, with bfloat16 weights."""
    small = copy.deepcopy(model)
    for tensor in (*small.parameters(), *small.buffers()):
        tensor.data = tensor.data.to(torch.bfloat16)
    small.config.dtype = torch.bfloat16
    small.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    small.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pool(recipe: Recipe, number: int) -> list[list[Answered]]:
    """The batches of one pool in random order, each of answers of similar length."""
    stream = Stream(recipe.seed, _TRAINING, number)
    drawn = [answered(stream) for _ in range(_POOLED_BATCHES * recipe.batch_size)]
    drawn.sort(key=lambda each: len(each.prompt.split()) + len(each.answer.text.split()))
    starts = stream.sample(range(0, len(drawn), recipe.batch_size), _POOLED_BATCHES)
    return [drawn[start : start + recipe.batch_size] for start in starts]


def _loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: Sequence[Answered]) -> Tensor:
    """The mean over the tokens of answers, end included, of their negative log-probability."""
    prompts = tokenizer([each.prompt for each in batch])["input_ids"]
    answers = [[*ids, tokenizer.eos_token_id] for ids in tokenizer([each.answer.text for each in batch])["input_ids"]]
    length = max(len(one) + len(other) for one, other in zip(prompts, answers, strict=True))
    ids = torch.full((len(batch), length), tokenizer.pad_token_id)
    labels = torch.full((len(batch), length), _IGNORED)
    for row, (one, other) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(one) + len(other)] = torch.tensor([*one, *other])
        labels[row, len(one) : len(one) + len(other)] = torch.tensor(other)
    # Answers are on the left of padding, so that causal attention needs no mask.
    logits = model(input_ids=ids[:, :-1]).logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=_IGNORED)


def _written(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], seed: int) -> list[str]:
    asked = tokenizer(prompts, return_tensors="pt", padding=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = model.generate(**asked, max_new_tokens=32, do_sample=True, top_k=0, top_p=1.0)
    answers: list[str] = tokenizer.batch_decode(found[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def _optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; norms have no weight decay."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    norms = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    state = load_checkpoint(path)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the reference language model on the image world's grammar.")
    parser.add_argument("out", type=Path, help="folder for checkpoint, log and model")
    recipe_flags(parser, Recipe())
    flags = parser.parse_args(arguments)
    train(flags.out, recipe_of(flags, Recipe))
    return 0


if __name__ == "__main__":
    sys.exit(main())
