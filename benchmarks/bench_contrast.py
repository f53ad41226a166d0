"""Which share of contrasts of two shapes has the right sign on each of them, and could another reading do better?

The demo's scenes of two different objects. A contrast is right if its mean is positive over the first object's pixels
and negative over the second one's. Beside the contrasts of two texts through the heads labelled with shapes stand
readings that know more than a user does: heads chosen by the truth of other scenes, and a linear probe (multinomial
logistic regression on single patches' head outputs) that was trained on the true shapes of other scenes. Nothing was
chosen on the scenes that are measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch.nn.functional import cross_entropy

from benchmarks.measure import benchmark
from headspan.config import PrecomputeSettings
from headspan.decompose.formula import mean_and_bias_terms
from headspan.demo import IMAGES, SEED, SPLIT
from headspan.errors import percent
from headspan.explore.maps.segmentation import patch_outputs, resized
from headspan.run.precompute import precompute
from headspan.store.head_space import Head, stored_heads
from headspan.store.reader import Store
from headspan.tasks.zero_shot import embed_classes
from headspan.world import prompts, write_world_shards
from headspan.world.factors import Scene
from headspan.world.ground_truth import scenes_of
from headspan.world.mapped import EveryHead, masks_of, shares_of_patches, value_of_thing
from headspan.world.reference_scores import TRAINED, reference_scores
from headspan.world.scores import means_of

QUESTION = "contrasts of two shapes"
DUE_TO = (
    "nearly all contrasts are larger on the right object. Wrong ones have one sign on both objects, since the patches "
    "of one object also hold information about the other: the blocks before have mixed them. Heads chosen by the truth "
    "and a probe that knows the true shapes are about as good, so the text is near the ceiling of linear readings."
)
CONCEPT, FACTOR = "shapes", "shape"
# The reference model was trained on seed 0 of the split `train`.
_OTHER_SEED, _OTHER_SCENES = 100, 1_000
# The penalty of the probe, the share of a patch that an object covers, and empty patches of an image.
_PENALTY, _COVERED, _EMPTY = 1e-2, 0.5, 4


@dataclass(frozen=True, slots=True)
class Pair:
    """A scene of two different objects whose shapes differ, by their places among the shapes."""

    image: int
    first: int
    second: int
    mask: np.ndarray


def run(toy: bool) -> dict[str, Any]:
    """For each reading, the shares of scenes with the right signs and with the larger mean on the right object."""
    measured, others = (60, 60) if toy else (IMAGES, _OTHER_SCENES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = write_world_shards(folder / "measured", measured, SEED, split=SPLIT)
        shards = own, write_world_shards(folder / "others", others, _OTHER_SEED, split="train")
        out = str(folder / "run.zarr")
        precompute(PrecomputeSettings(shards, out, "reference", layers="all", emit=("heads", "patches")))
        store = Store(out)
        return {"others": others, **_readings(store, scenes_of(store), measured)}


def _readings(store: Store, scenes: list[Scene], measured: int) -> dict[str, Any]:
    classes = embed_classes(store, {FACTOR: prompts(FACTOR)})[FACTOR]
    every = stored_heads(store)
    (own,) = (each.heads for each in reference_scores()[TRAINED].contrasts if each.concept == CONCEPT)
    known = _pairs(scenes, range(measured, len(scenes)), classes.names)
    pairs = _pairs(scenes, range(measured), classes.names)
    signs, maps_of = np.eye(len(classes.names)), EveryHead.of(store, classes.vectors)
    # Means over pixels are linear in the map, so those of each head are enough.
    of_known, of_pairs = (
        np.stack([_means(maps_of.maps(each.image, signs[each.first] - signs[each.second]), each) for each in some])
        for some in (known, pairs)
    )
    best = _best_heads(of_known)
    probe = _probe(store, scenes, range(measured, len(scenes)), classes.names, own)
    readings = {
        "the text, heads labelled with shapes": of_pairs[:, [every.index(head) for head in own]].sum(axis=1),
        "the text, all heads": of_pairs.sum(axis=1),
        f"the text, {len(best)} heads chosen by the truth": of_pairs[:, best].sum(axis=1),
        "a linear probe on the labelled heads": np.stack([_probed(probe, store, each, own) for each in pairs]),
    }
    return {
        "scenes": len(pairs),
        "rows": [
            {"reading": name, "right": _right(means), "larger": float((means[:, 0] > means[:, 1]).mean())}
            for name, means in readings.items()
        ],
    }


def _pairs(scenes: Sequence[Scene], images: range, names: Sequence[str]) -> list[Pair]:
    shapes = {
        image: [names.index(value_of_thing(thing, FACTOR)) for thing in scenes[image].things]
        for image in images
        if scenes[image].count == 2 and not scenes[image].repeated
    }
    differ = [image for image, (first, second) in shapes.items() if first != second]
    masks = masks_of(scenes, differ)
    return [Pair(image, shapes[image][0], shapes[image][1], masks[image]) for image in differ]


def _means(maps: Float32[np.ndarray, "*heads rows columns"], pair: Pair) -> Float64[np.ndarray, "*heads 2"]:
    """The mean of each map over the pixels of the first object and of the second."""
    flat = maps.reshape(-1, *maps.shape[-2:])
    found = [means_of(resized(each, pair.mask.shape), pair.mask == 1, pair.mask == 2) for each in flat]
    return np.array(found, np.float64).reshape(-1, 2)


def _right(means: Float64[np.ndarray, "pair 2"]) -> float:
    return float(((means[:, 0] > 0) & (means[:, 1] < 0)).mean())


def _best_heads(means: Float64[np.ndarray, "pair head 2"]) -> list[int]:
    """Heads added one by one, each the one that makes most signs right, as long as it makes more right."""
    chosen: list[int] = []
    reached = -1.0
    while True:
        left = (head for head in range(means.shape[1]) if head not in chosen)
        tried = {head: _right(means[:, [*chosen, head]].sum(axis=1)) for head in left}
        if not tried or max(tried.values()) <= reached:
            return chosen
        chosen.append(max(tried, key=lambda head: tried[head]))
        reached = tried[chosen[-1]]


def _patches(store: Store, image: int, heads: Sequence[Head]) -> Float32[np.ndarray, "patch number"]:
    """The head outputs of each patch, divided by the embedding's length."""
    found = patch_outputs(store, image)
    scale = mean_and_bias_terms(found.norm, normalised=True)[0]
    parts = [found.of_layer(layer)[store.prefix_tokens :, head] for layer, head in heads]
    return (np.concatenate(parts, axis=1) * scale).astype(np.float32)


def _probe(
    store: Store, scenes: Sequence[Scene], images: range, names: Sequence[str], heads: Sequence[Head]
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and constants of the evidence for each shape, from patches that one object covers and from empty ones."""
    numbers, values = [], []
    masks = masks_of(scenes, images)
    for image in images:
        of = _patches(store, image, heads)
        grid = (round(len(of) ** 0.5),) * 2
        # Of several equal objects, one is enough.
        for number, thing in list(enumerate(scenes[image].things, 1))[: 1 if scenes[image].repeated else None]:
            covered = shares_of_patches(masks[image] == number, grid).ravel() > _COVERED
            numbers.append(of[covered])
            values += [names.index(value_of_thing(thing, FACTOR))] * int(covered.sum())
        empty = np.flatnonzero(shares_of_patches(masks[image] == 0, grid).ravel() == 1)[:_EMPTY]
        numbers.append(of[empty])
        values += [len(names)] * len(empty)
    inputs = np.concatenate(numbers)
    mean, deviation = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    given, wanted = torch.from_numpy((inputs - mean) / deviation), torch.tensor(values)
    weights = torch.zeros(inputs.shape[1], len(names) + 1, requires_grad=True)
    constant = torch.zeros(len(names) + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, constant], max_iter=60)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        found = cross_entropy(given @ weights + constant, wanted) + _PENALTY * (weights**2).sum()
        found.backward()
        return found

    optimiser.step(loss)
    scaled = weights.detach().numpy() / deviation[:, None]
    return scaled, constant.detach().numpy() - mean @ scaled


def _probed(probe: tuple[np.ndarray, np.ndarray], store: Store, pair: Pair, heads: Sequence[Head]) -> np.ndarray:
    """The means of the evidence for the first object's shape minus that for the second one's."""
    found = _patches(store, pair.image, heads) @ probe[0] + probe[1]
    side = round(len(found) ** 0.5)
    evidence = (found[:, pair.first] - found[:, pair.second]).reshape(side, side).astype(np.float32)
    return _means(evidence, pair)[0]


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each reading."""
    cells = [
        [row["reading"], str(line["scenes"]), percent(row["right"]), percent(row["larger"])] for row in line["rows"]
    ]
    return [["reading", "scenes", "right signs", "larger on the right object"], *cells]


if __name__ == "__main__":
    benchmark(QUESTION, run)
