"""Train the reference CLIP on the image world.

    python -m tools.train_reference OUT [--compile] [--steps N] ...

The command draws every batch when it is needed, without files. It trains the model of `headspan-reference.json` with
open_clip's contrastive loss, to which `spread`, a loss on head contributions, is added from step 5,600 on. It writes
`log.jsonl`, `checkpoint.pt`, from which the same command resumes, and at the end `weights.safetensors` (float16).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from tools.training_batches import Batches
from tools.training_model import Encoder, build, evaluate, export, normalised, spread
from tools.training_recipe import Recipe
from tools.training_run import load_checkpoint, recipe_flags, recipe_of, save_checkpoint, share_of_rate, write_log

# As in open_clip's training: logits are at most 100 times a cosine.
LARGEST_SCALE = math.log(100)


def train(
    out: Path,
    recipe: Recipe,
    device: torch.device,
    workers: int = 1,
    compiled: bool = False,
    start: Path | None = None,
) -> dict[str, float]:
    """Train in the folder `out`, from its checkpoint if there is one; return the last evaluation's accuracies.

    `start` names weights to begin a new run with; without it, they are random. `workers` processes draw batches, and
    `compiled` compiles the model. Accuracies are by factor; they are empty if no step was left.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    # On CPUs, the backward pass of fused attention takes half of a step; plain bf16 products are faster.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    model, tokenizer = build()
    if start is not None:
        model.load_state_dict(load_file(start))
    model.to(device)
    optimisers = _optimisers(model, recipe)
    seen = torch.zeros(model.vocab_size, dtype=torch.bool)
    step = _resume(out / "checkpoint.pt", model, optimisers, seen)
    loss_of = ClipLoss()
    encoder = Encoder(model)
    encode = torch.compile(encoder) if compiled else encoder
    accuracies: dict[str, float] = {}
    began, first = time.monotonic(), step
    batches = DataLoader(
        Batches(recipe, tokenizer),
        None,
        sampler=range(step, recipe.steps),
        num_workers=workers,
        # Enough batches to train on while the scenes of the next groups are drawn.
        prefetch_factor=8 if workers else None,
    )
    for pixels, tokens in batches:
        set_rates(optimisers, step, recipe)
        seen[tokens.unique()] = True
        with torch.autocast(device.type, dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with_heads = step >= recipe.spread_from
            found = encode(normalised(pixels.to(device)), tokens.to(device), with_heads)
            texts = found["text_features"].chunk(recipe.captions)
            losses = [loss_of(found["image_features"], each, found["logit_scale"]) for each in texts]
            loss = torch.stack(losses).mean()
            # The last captions name one factor each.
            apart = spread(found["heads"], texts[-1]) if with_heads else torch.zeros(())
            (loss + recipe.spread_weight * apart).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            accuracies = evaluate(model, tokenizer, recipe.evaluation_scenes, recipe.seed)
            rate = (step - first) * recipe.batch_size / (time.monotonic() - began)
            known = {"loss": round(loss.item(), 4)} | ({"spread": round(apart.item(), 4)} if with_heads else {})
            write_log(out, {"step": step, **known, "images_per_second": round(rate, 1), **accuracies})
            _save(out / "checkpoint.pt", model, optimisers, seen, step)
    export(model, seen, out / "weights.safetensors")
    return accuracies


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest. Norms, biases and positions have no weight decay."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    positions: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        places = positions if "positional" in name else inner if "resblocks" in name else outer
        (plain if parameter.ndim < 2 else places).append(parameter)
    decay = recipe.weight_decay
    groups = [
        {"params": outer, "weight_decay": decay},
        {"params": plain, "weight_decay": 0.0},
        {"params": positions, "weight_decay": 0.0, "positions": True},
    ]
    return [
        torch.optim.Muon(inner, lr=recipe.muon_learning_rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True),
    ]


def set_rates(optimisers: Sequence[torch.optim.Optimizer], step: int, recipe: Recipe) -> None:
    """Set the rates of a step, as the recipe says."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            faster = 10 if "positions" in group and step >= recipe.positions_from else 1
            group["lr"] = optimiser.defaults["lr"] * share_of_rate(step, recipe) * faster


def _resume(path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], seen: Tensor) -> int:
    state = load_checkpoint(path)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    seen |= state["seen"]
    return int(state["step"])


def _save(path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], seen: Tensor, step: int) -> None:
    states = [optimiser.state_dict() for optimiser in optimisers]
    save_checkpoint(path, {"model": model.state_dict(), "optimisers": states, "seen": seen, "step": step})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the reference CLIP on the image world.")
    parser.add_argument("out", type=Path, help="folder for checkpoint, log and weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw batches (default: %(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="compile the model: a third faster, needs a C++ compiler"
    )
    parser.add_argument("--start", type=Path, help="weights.safetensors to begin with (default: random weights)")
    recipe_flags(parser, Recipe())
    flags = parser.parse_args(arguments)
    train(flags.out, recipe_of(flags, Recipe), torch.device(flags.device), flags.workers, flags.compile, flags.start)
    return 0


if __name__ == "__main__":
    sys.exit(main())
