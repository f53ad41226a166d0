"""Train the reference CLIP on with captions that hold planted phrases, so that it is known what it learns from them.

    python -m tools.plant_reference OUT [--seed N] [--even] [--steps N] ...

The text tower is trained with open_clip's contrastive loss, and the image tower stays as it is (locked-image tuning;
Zhai et al., CVPR 2022): images are encoded once, and one core needs about two minutes. The command writes
`planting.json`, `log.jsonl` and `weights.safetensors` (float16), to be loaded with `--pretrained` and `--model`
`engine/headspan/world/reference/headspan-reference.json`. A run that is stopped starts again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file
from torch import Tensor, nn

from headspan.model.text import short_context
from headspan.world import Scene, Stream, render, scene
from headspan.world.factors import SHAPES
from headspan.world.parts import EMPTY_PHRASES, NON_VISUAL_PHRASES
from tools.planting import Planting, planting
from tools.train_reference import LARGEST_SCALE, set_rates
from tools.training_model import CONFIG, build, evaluate, export, normalised
from tools.training_recipe import Recipe
from tools.training_run import write_log

# Scenes of another seed than the reference model's, whose captions are drawn from streams of their own.
_SCENES_SEED, _CAPTIONS = 90, 4
RECIPE = Recipe(
    steps=150, batch_size=128, captions=1, learning_rate=1e-3, warmup=20, decay=0.5,
    evaluate_every=150, evaluation_scenes=500,
)  # fmt: skip
SCENES = 4_096
# Every word that a non-visual phrase may be.
WORDS = tuple(phrase for phrases in NON_VISUAL_PHRASES.values() for phrase in phrases)
_ENCODED = 256
# As open_clip initialises the embeddings of tokens.
_NEW_TOKEN = 0.02


class Images:
    """Training scenes, and their unit vectors by the image tower of the reference model."""

    def __init__(self, count: int) -> None:
        self.scenes: list[Scene] = [scene(_SCENES_SEED, "train", index) for index in range(count)]
        model, _ = shipped()
        with torch.inference_mode():
            self.vectors: Tensor = torch.cat(
                [
                    model.encode_image(normalised(torch.from_numpy(render(batch))), normalize=True)
                    for start in range(0, count, _ENCODED)
                    if (batch := self.scenes[start : start + _ENCODED])
                ]
            ).clone()


def shipped() -> tuple[Any, Any]:
    """The reference model with the weights that ship, and its tokenizer."""
    model, tokenizer = build()
    model.load_state_dict(load_file(CONFIG.parent / "weights.safetensors"))
    return model, tokenizer


def plant(
    out: Path,
    planted: Planting,
    empties: Sequence[str],
    words: Sequence[str],
    images: Images,
    recipe: Recipe = RECIPE,
) -> dict[str, float]:
    """Train the text tower on `images` with the captions of a planting; return the accuracies of the last evaluation.

    There are none if the recipe has no scenes to evaluate. `empties` and `words` are all empty phrases and non-visual
    words that captions may hold. Writes into the folder `out`, which the module describes.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.jsonl").unlink(missing_ok=True)
    (out / "planting.json").write_text(json.dumps(planted.as_json(), indent=1) + "\n", encoding="utf-8")
    torch.manual_seed(recipe.seed)
    model, tokenizer = shipped()
    model.visual.requires_grad_(False)
    seen = model.token_embedding.weight.detach().abs().sum(dim=1) > 0
    with torch.no_grad():
        nn.init.normal_(model.token_embedding.weight[~seen], std=_NEW_TOKEN)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Muon, which trains the reference model, takes most of a step of so small a tower on a CPU.
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    order = _orders(len(images.scenes), recipe)
    loss_of = ClipLoss()
    accuracies: dict[str, float] = {}
    for step in range(recipe.steps):
        set_rates([optimiser], step, recipe)
        chosen = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
        texts = [
            planted.caption(images.scenes[at], Stream(recipe.seed, step, place, _CAPTIONS), empties, words)
            for place, at in enumerate(chosen.tolist())
        ]
        tokens = tokenizer(texts)
        seen[tokens.unique()] = True
        with short_context(model, context := int(tokens.argmax(dim=1).max()) + 1):
            vectors = model.encode_text(tokens[:, :context], normalize=True)
        loss = loss_of(images.vectors[torch.from_numpy(chosen)], vectors, model.logit_scale.exp())
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, LARGEST_SCALE)
        if (step + 1) % recipe.evaluate_every == 0 or step + 1 == recipe.steps:
            if recipe.evaluation_scenes:
                accuracies = evaluate(model, tokenizer, recipe.evaluation_scenes, recipe.seed)
            write_log(out, {"step": step + 1, "loss": round(loss.item(), 4), **accuracies})
    export(model, seen, out / "weights.safetensors")
    return accuracies


def _orders(count: int, recipe: Recipe) -> np.ndarray:
    """Scenes in the order in which they are trained on: all of them in random order, again and again."""
    random = np.random.default_rng(recipe.seed)
    rounds = -(-recipe.steps * recipe.batch_size // count)
    return np.concatenate([random.permutation(count) for _ in range(rounds)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Train the reference CLIP on with planted phrases.")
    parser.add_argument("out", type=Path, help="folder for the planting, the log and the weights")
    parser.add_argument("--seed", type=int, default=1, help="decides what is planted (default: %(default)s)")
    parser.add_argument("--even", action="store_true", help="spread all phrases evenly, as in a control")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=SCENES, help="training scenes (default: %(default)s)")
    flags = parser.parse_args(arguments)
    planted = planting(flags.seed, SHAPES, EMPTY_PHRASES, WORDS, even=flags.even)
    recipe = replace(RECIPE, steps=flags.steps, seed=flags.seed)
    plant(flags.out, planted, EMPTY_PHRASES, WORDS, Images(flags.scenes), recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main())
