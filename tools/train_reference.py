"""Train the reference CLIP on the image world: one command, seeded, resumable, evaluated as it goes.

`python tools/train_reference.py OUT` draws every batch as it is needed (no files), trains the model of
`reference-vit.json` with open_clip's contrastive loss, and writes to OUT `checkpoint.pt` (the same command goes
on from it), `log.jsonl`, and at the end `weights.safetensors` (float16). Batch number n of a seed is the same
wherever a run was interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from headspan.config import Preprocess
from headspan.model.tower import normalise
from headspan.world import FACTORS, Scene, Stream, caption, prompts, render, scene

CONFIG = Path(__file__).parent.parent / "engine" / "headspan" / "reference-vit.json"
# The stream of a scene's captions, beside the scene's own.
_CAPTIONS = 2
# Of open_clip's training recipe: logits are at most a hundred times a cosine.
_LARGEST_SCALE = math.log(100)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the weights."""

    steps: int = 8_000
    batch_size: int = 256
    learning_rate: float = 1e-3
    warmup: int = 400
    weight_decay: float = 0.1
    seed: int = 0
    # Steps between two evaluations, each followed by a checkpoint, and scenes of an evaluation.
    evaluate_every: int = 500
    evaluation_scenes: int = 2_000


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch n: uint8 pixels `[batch, height, width, 3]` and tokens `[batch, context]` of training scenes."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        seed, size = self._recipe.seed, self._recipe.batch_size
        scenes = [scene(seed, "train", index) for index in range(number * size, (number + 1) * size)]
        texts = [caption(each, Stream(seed, each.index, _CAPTIONS)) for each in scenes]
        return torch.from_numpy(render(scenes)), self._tokenizer(texts)


def train(out: Path, recipe: Recipe, device: torch.device, workers: int = 1) -> dict[str, float]:
    """Train, or go on training, in the folder `out`; returns the last evaluation's accuracies by factor."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    model, tokenizer = build()
    model.to(device)
    optimiser = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98))
    seen = torch.zeros(model.vocab_size, dtype=torch.bool)
    step = _resume(out / "checkpoint.pt", model, optimiser, seen)
    loss_of = ClipLoss()
    precision = torch.bfloat16
    accuracies: dict[str, float] = {}
    began, first = time.monotonic(), step
    batches = DataLoader(Batches(recipe, tokenizer), None, sampler=range(step, recipe.steps), num_workers=workers)
    for pixels, tokens in batches:
        for group in optimiser.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe)
        seen[tokens.unique()] = True
        with torch.autocast(device.type, dtype=precision):
            found = model(_normalised(pixels.to(device)), tokens.to(device))
            loss = loss_of(found["image_features"], found["text_features"], found["logit_scale"])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _LARGEST_SCALE)
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            accuracies = evaluate(model, tokenizer, recipe.evaluation_scenes, recipe.seed)
            rate = (step - first) * recipe.batch_size / (time.monotonic() - began)
            _log(out, {"step": step, "loss": round(loss.item(), 4), "images_per_second": round(rate, 1), **accuracies})
            _save(out / "checkpoint.pt", model, optimiser, seen, step)
    export(model, seen, out / "weights.safetensors")
    return accuracies


def build() -> tuple[Any, Any]:
    """The reference model, untrained, and its tokenizer."""
    open_clip.add_model_config(CONFIG)
    logging.disable(logging.WARNING)
    model = open_clip.create_model(CONFIG.stem, output_dict=True)
    logging.disable(logging.NOTSET)
    return model, open_clip.get_tokenizer(CONFIG.stem)


@torch.inference_mode()
def evaluate(model: Any, tokenizer: Any, count: int, seed: int) -> dict[str, float]:
    """Zero-shot accuracy of every factor on held-out scenes: of those that have it, the share named right."""
    model.eval()
    device = model.logit_scale.device
    scenes = [scene(seed + 1, "held_out", index) for index in range(count)]
    vectors = torch.cat(
        [
            model.encode_image(_normalised(torch.from_numpy(render(scenes[i : i + 256])).to(device)), normalize=True)
            for i in range(0, count, 256)
        ]
    )
    accuracies = {}
    for factor in FACTORS:
        ways = prompts(factor)
        classes = torch.stack(
            [
                nn.functional.normalize(
                    model.encode_text(tokenizer(texts).to(device), normalize=True).mean(dim=0), dim=0
                )
                for texts in ways.values()
            ]
        )
        truths = [value_of(each, factor) for each in scenes]
        named = [list(ways)[pick] for pick in (vectors @ classes.T).argmax(dim=1).tolist()]
        right = [name == truth for name, truth in zip(named, truths, strict=True) if truth is not None]
        accuracies[factor] = round(sum(right) / len(right), 4)
    model.train()
    return accuracies


def value_of(each: Scene, factor: str) -> str | None:
    """A scene's value of a factor, as `prompts` has it; None where the scene has no one value of it."""
    if factor == "count":
        return str(each.count) if each.repeated else None
    if factor in ("style", "background", "background_colour"):
        return str(getattr(each, factor))
    if factor == "position":
        return each.things[0].position if each.count == 1 else None
    return str(getattr(each.things[0], factor)) if each.repeated else None


def export(model: Any, seen: Tensor, path: Path) -> None:
    """Write float16 weights that open_clip loads; embeddings of tokens that never occurred are zero."""
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    weights["token_embedding.weight"][~seen] = 0
    save_file(weights, path)


def _normalised(pixels: Tensor) -> Tensor:
    preprocess = Preprocess()
    return normalise(pixels, preprocess.mean, preprocess.std, torch.float32)


def _schedule(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)))


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; gains, biases and the logit scale do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def _resume(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, seen: Tensor) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    seen |= state["seen"]
    return int(state["step"])


def _save(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, seen: Tensor, step: int) -> None:
    # Whole or not there, so that a run killed while saving goes on from the checkpoint before.
    temporary = path.with_suffix(".tmp")
    torch.save(
        {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "seen": seen, "step": step}, temporary
    )
    temporary.replace(path)


def _log(out: Path, line: dict[str, Any]) -> None:
    text = json.dumps(line)
    print(text, flush=True)
    with (out / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train the reference CLIP on the image world.")
    parser.add_argument("out", type=Path, help="folder for checkpoint, log and weights")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw batches (default: %(default)s)")
    for name, kind in _flags():
        default = getattr(Recipe(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help="default: %(default)s")
    flags = parser.parse_args(arguments)
    recipe = Recipe(**{name: getattr(flags, name) for name, _ in _flags()})
    train(flags.out, recipe, torch.device(flags.device), flags.workers)
    return 0


def _flags() -> Iterator[tuple[str, type]]:
    for name in Recipe.__dataclass_fields__:
        yield name, type(getattr(Recipe(), name))


if __name__ == "__main__":
    sys.exit(main())
