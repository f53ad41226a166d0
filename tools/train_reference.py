"""Train the reference CLIP on the image world: one command, seeded, resumable, evaluated as it goes.

`python tools/train_reference.py OUT` draws every batch as it is needed (no files), trains the model of
`headspan-reference.json` with open_clip's contrastive loss (towards the end, also with one that has few heads speak of
each text), and writes to OUT `checkpoint.pt` (the same command goes
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

import numpy as np
import open_clip
import torch
from open_clip.loss import ClipLoss
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset

from headspan.config import Preprocess
from headspan.model.tower import normalise
from headspan.world import FACTORS, Scene, Stream, caption, focused_caption, prompts, render, scene, value_of

CONFIG = Path(__file__).parent.parent / "engine" / "headspan" / "world" / "reference" / "headspan-reference.json"
# The stream of a scene's captions, beside the scene's own.
_CAPTIONS = 2
# Scenes are grouped among those of so many batches.
_POOLED_BATCHES = 64
_HARD_FACTORS = (*FACTORS, *("texture", "position") * 3, *("shape",) * 2, "size")
_HARDEST_FACTORS = (*_HARD_FACTORS, *("texture",) * 6)
# Of open_clip's training recipe: logits are at most a hundred times a cosine.
_LARGEST_SCALE = math.log(100)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What decides the weights."""

    steps: int = 7_200
    batch_size: int = 256
    # Captions drawn for each image: the text tower is a small part of the work, so more are cheap.
    captions: int = 2
    # The step from which on the last of them names one factor alone: a caption of many factors is matched by the
    # first that is learnt, and teaches little of the others.
    focused_from: int = 1_750
    # The step from which on that factor is more often one that is hard to learn.
    hard_from: int = 2_400
    # The step from which on it is most often texture, the hardest, and three in four groups are alike in shape.
    texture_from: int = 4_000
    learning_rate: float = 1e-3
    # For the matrices inside the blocks, which Muon trains; updates are scaled to the size of AdamW's.
    muon_learning_rate: float = 3e-3
    warmup: int = 200
    # From this step on, positions are learnt at ten times AdamW's rate: they start a sixth as large as the patches that
    # they are added to, and until they have grown, nothing can tell left from right.
    positions_from: int = 2_200
    # Share of the steps over which the rate falls to zero at the end; before that, a run may still be made longer.
    decay: float = 0.25
    weight_decay: float = 0.1
    # The step from which on batches consist of groups of scenes alike in what is learnt first: the main object's
    # colour, whether there are others, and its shape or, in every other group, its texture. Only what is left tells
    # the scenes of a group apart; among scenes taken at random, that would hardly ever matter.
    grouped_from: int = 1_250
    group_size: int = 8
    # From this step on, `spread` counts beside the contrastive loss, so much: what one head says of a text, others need
    # not say again, and a head that says two things gives one of them up. It knows of no factor.
    spread_from: int = 5_600
    spread_weight: float = 0.2
    seed: int = 0
    # Steps between two evaluations, each followed by a checkpoint, and scenes of an evaluation.
    evaluate_every: int = 500
    evaluation_scenes: int = 2_000


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch n: uint8 pixels `[batch, height, width, 3]` and tokens `[captions * batch, context]` of training scenes."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self._recipe = recipe
        self._tokenizer = tokenizer
        self._pool: tuple[int, list[list[Scene]]] = (-1, [])

    def __len__(self) -> int:
        return self._recipe.steps

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        seed, size = self._recipe.seed, self._recipe.batch_size
        if number < self._recipe.grouped_from:
            scenes = [scene(seed, "train", index) for index in range(number * size, (number + 1) * size)]
        else:
            scenes = self._grouped(number)
        streams = [Stream(seed, each.index, _CAPTIONS) for each in scenes]
        focused = int(number >= self._recipe.focused_from)
        factors: tuple[str, ...] = _HARD_FACTORS if number >= self._recipe.hard_from else FACTORS
        if number >= self._recipe.texture_from:
            factors = _HARDEST_FACTORS
        pairs = list(zip(scenes, streams, strict=True))
        # All first captions, then all second ones.
        texts = [caption(*pair) for _ in range(self._recipe.captions - focused) for pair in pairs]
        texts += [focused_caption(*pair, factors) for _ in range(focused) for pair in pairs]
        return torch.from_numpy(render(scenes)), self._tokenizer(texts)

    def _grouped(self, number: int) -> list[Scene]:
        """One of the batches into which the scenes of many are put anew."""
        pool, place = divmod(number, _POOLED_BATCHES)
        if self._pool[0] != pool:
            self._pool = pool, self._draw_pool(pool)
        return self._pool[1][place]

    def _draw_pool(self, pool: int) -> list[list[Scene]]:
        seed, size, group = self._recipe.seed, self._recipe.batch_size, self._recipe.group_size
        count = _POOLED_BATCHES * size
        random = np.random.default_rng([seed, pool])
        scenes = [scene(seed, "train", index) for index in range(pool * count, (pool + 1) * count)]
        # Scenes that are alike side by side, in random order among themselves; then groups in random order.
        every = 4 if pool * _POOLED_BATCHES >= self._recipe.texture_from else 2
        alike = sorted(random.permutation(count).tolist(), key=lambda at: _likeness(scenes[at], every))
        groups = random.permutation(np.array(alike).reshape(-1, group)).reshape(_POOLED_BATCHES, size)
        return [[scenes[at] for at in batch] for batch in groups.tolist()]


def _likeness(each: Scene, every: int) -> tuple[bool, bool, bool, str, str]:
    """What the scenes of a group have in common; one scene in `every` is grouped by its texture."""
    main, by_shape = each.things[0], each.index % every != 1
    return by_shape, each.repeated, each.count == 1, main.colour, main.shape if by_shape else main.texture


def train(
    out: Path,
    recipe: Recipe,
    device: torch.device,
    workers: int = 1,
    compiled: bool = False,
    start: Path | None = None,
) -> dict[str, float]:
    """Train, or go on training, in the folder `out`; returns the last evaluation's accuracies by factor.

    A run that is new begins with the weights at `start`, where that is given.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    # On CPUs the backward pass of fused attention takes half of a step; plain products in bf16 do not.
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
        # Enough to train on while a pool of scenes is drawn.
        prefetch_factor=8 if workers else None,
    )
    for pixels, tokens in batches:
        _set_rates(optimisers, step, recipe)
        seen[tokens.unique()] = True
        with torch.autocast(device.type, dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with_heads = step >= recipe.spread_from
            found = encode(_normalised(pixels.to(device)), tokens.to(device), with_heads)
            texts = found["text_features"].chunk(recipe.captions)
            losses = [loss_of(found["image_features"], each, found["logit_scale"]) for each in texts]
            loss = torch.stack(losses).mean()
            # Of the last captions, which name one factor each.
            apart = spread(found["heads"], texts[-1]) if with_heads else torch.zeros(())
            (loss + recipe.spread_weight * apart).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            model.logit_scale.clamp_(0, _LARGEST_SCALE)
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.steps:
            accuracies = evaluate(model, tokenizer, recipe.evaluation_scenes, recipe.seed)
            rate = (step - first) * recipe.batch_size / (time.monotonic() - began)
            known = {"loss": round(loss.item(), 4)} | ({"spread": round(apart.item(), 4)} if with_heads else {})
            _log(out, {"step": step, **known, "images_per_second": round(rate, 1), **accuracies})
            _save(out / "checkpoint.pt", model, optimisers, seen, step)
    export(model, seen, out / "weights.safetensors")
    return accuracies


class Encoder(nn.Module):
    """open_clip's model, which also says what each head added to the image vector before its length was made one."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor, tokens: Tensor, with_heads: bool) -> dict[str, Tensor]:
        """Unit vectors of images and texts, the scale of logits and, where asked for, `heads [image, head, joint]`,
        of all layers one after the other, each centred by its own mean and without the output's bias."""
        visual = self.clip.visual
        rows = visual._embeds(pixels)
        taken = []
        for block in visual.transformer.resblocks:
            if with_heads:
                taken.append(_taken_by_class_token(block.ln_1(rows), block.attn))
            rows = block(rows)
        pooled, _ = visual._pool(rows)
        found = {
            "image_features": nn.functional.normalize(pooled @ visual.proj, dim=-1),
            "text_features": self.clip.encode_text(tokens, normalize=True),
            "logit_scale": self.clip.logit_scale.exp(),
        }
        if with_heads:
            norm = visual.ln_post
            heads = torch.cat(taken, dim=1).float()
            heads = (heads - heads.mean(dim=-1, keepdim=True)) * norm.weight
            deviation = (rows[:, 0].float().var(dim=1, unbiased=False) + norm.eps).sqrt()
            found["heads"] = (heads @ visual.proj) / deviation[:, None, None]
        return found


def _taken_by_class_token(rows: Tensor, attention: nn.MultiheadAttention) -> Tensor:
    """What each head adds to the class token's row, `[image, head, width]`: a query of one row costs next to nothing.

    Keys and values of all rows never exist: the query is carried back through the keys' weights, and values are taken
    of the mixed rows. The keys' bias adds the same to every score.
    """
    heads = attention.num_heads
    query, key, value = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_weight.chunk(3))
    query_bias, _, value_bias = (part.unflatten(0, (heads, -1)) for part in attention.in_proj_bias.chunk(3))
    queries = torch.einsum("bd,hcd->bhc", rows[:, 0], query) + query_bias
    scores = torch.einsum("bhc,hcd->bhd", queries, key) * queries.shape[-1] ** -0.5 @ rows.transpose(1, 2)
    values = torch.einsum("bhd,hcd->bhc", scores.softmax(dim=-1) @ rows, value) + value_bias
    return torch.einsum("bhc,dhc->bhd", values, attention.out_proj.weight.unflatten(1, (heads, -1)))


def spread(heads: Tensor, texts: Tensor) -> Tensor:
    """Over how many heads the evidence for a text is spread: from 1 to the square root of their number, scale-free.

    Of `heads [image, head, joint]` along `texts [text, joint]`, σ being a head's standard deviation over the images of
    a batch: the mean over texts of Σσ / sqrt(Σσ²), the ratio of norms that measures sparsity (Hoyer, JMLR 2004). Only
    what tells one text of the batch from another counts.
    """
    with torch.autocast(heads.device.type, enabled=False):
        heads, texts = heads.float(), texts.float()
        evidence = torch.einsum("bhd,td->hbt", heads - heads.mean(dim=0), texts - texts.mean(dim=0))
        variance = evidence.square().mean(dim=1)
        return ((variance + 1e-12).sqrt().sum(dim=0) / (variance.sum(dim=0) + 1e-12).sqrt()).mean()


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


def export(model: Any, seen: Tensor, path: Path) -> None:
    """Write float16 weights that open_clip loads; embeddings of tokens that never occurred are zero."""
    weights = {name: tensor.detach().cpu().half().contiguous() for name, tensor in model.state_dict().items()}
    weights["token_embedding.weight"][~seen] = 0
    save_file(weights, path)


def _normalised(pixels: Tensor) -> Tensor:
    preprocess = Preprocess()
    return normalise(pixels, preprocess.mean, preprocess.std, torch.float32)


def _schedule(step: int, recipe: Recipe) -> float:
    """Share of the full rate: linear warm-up, a long level stretch, a straight line to zero."""
    left = (recipe.steps - step) / max(recipe.steps * recipe.decay, 1)
    return min((step + 1) / recipe.warmup, left, 1.0)


def _optimisers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest; norms, biases and positions do not decay."""
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


def _set_rates(optimisers: Sequence[torch.optim.Optimizer], step: int, recipe: Recipe) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            faster = 10 if "positions" in group and step >= recipe.positions_from else 1
            group["lr"] = optimiser.defaults["lr"] * _schedule(step, recipe) * faster


def _resume(path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], seen: Tensor) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
        optimiser.load_state_dict(kept)
    seen |= state["seen"]
    return int(state["step"])


def _save(path: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], seen: Tensor, step: int) -> None:
    # Whole or not there, so that a run killed while saving goes on from the checkpoint before.
    temporary = path.with_suffix(".tmp")
    state = {
        "model": model.state_dict(),
        "optimisers": [optimiser.state_dict() for optimiser in optimisers],
        "seen": seen,
        "step": step,
    }
    torch.save(state, temporary)
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
    parser.add_argument(
        "--compile", action="store_true", help="compile the model: a third faster, needs a C++ compiler"
    )
    parser.add_argument("--start", type=Path, help="weights.safetensors to begin with (default: at random)")
    for name, kind in _flags():
        default = getattr(Recipe(), name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help="default: %(default)s")
    flags = parser.parse_args(arguments)
    recipe = Recipe(**{name: getattr(flags, name) for name, _ in _flags()})
    train(flags.out, recipe, torch.device(flags.device), flags.workers, flags.compile, flags.start)
    return 0


def _flags() -> Iterator[tuple[str, type]]:
    for name in Recipe.__dataclass_fields__:
        yield name, type(getattr(Recipe(), name))


if __name__ == "__main__":
    sys.exit(main())
