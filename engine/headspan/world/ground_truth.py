"""What the analyses say of a store of the image world, held against what is true there.

Five questions: can the model name every factor; which concepts have heads of their own, and would they with
random weights; do neighbours through the heads of a concept share its factor; do maps of a text fall on what it
names; does a factor suffer when the heads of its concept are mean-ablated. Scenes are drawn again from the
samples' metadata, so truths and masks come from the world itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from headspan.concepts.ccs import ConceptConsistency, read_scores
from headspan.errors import SettingsError
from headspan.events import Listener, ignore
from headspan.explore.neighbours import Head, mean_contributions, similarities
from headspan.explore.segmentation import average_precision, resized, text_maps
from headspan.prune.ablation import mean_ablated
from headspan.prune.zero_shot import Accuracy, Classes, accuracy, embed_classes
from headspan.store import results
from headspan.store.reader import Store
from headspan.world import FACTORS, Scene, prompts, render, scene, value_of
from headspan.world.factors import COLOURS, SHAPES
from headspan.world.words import with_article

# The world pool's concepts, and the factor that each is about.
FACTOR_OF = {
    "colours": "colour",
    "shapes": "shape",
    "textures": "texture",
    "sizes": "size",
    "counting": "count",
    "positions": "position",
    "styles": "style",
    "backgrounds": "background_colour",
}
_NEIGHBOURS = 10
_MAPPED_IMAGES = 300


@dataclass(frozen=True, slots=True)
class NeighbourCheck:
    """Precision@10: the share of an image's nearest ten that have its value of a concept's factor."""

    concept: str
    heads: tuple[Head, ...]
    through_heads: float
    through_all: float
    # Of ten images taken at random.
    chance: float
    queries: int


@dataclass(frozen=True, slots=True)
class MapCheck:
    """Maps of "a red ring" over images of red rings; means over images."""

    images: int
    # Of the map's positive mass, the share inside the objects' mask; and the mask's share of the image.
    mass_inside: float
    area: float
    # Mean over images of the pixels' average precision, whose chance is the area.
    average_precision: float


@dataclass(frozen=True, slots=True)
class Ablation:
    """Zero-shot accuracy of every factor with the heads of one concept at their means."""

    concept: str
    heads: tuple[Head, ...]
    accuracies: dict[str, float]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The answers to the five questions, of one CCS run."""

    run: str
    zero_shot: dict[str, Accuracy]
    # Number of heads with a CCS of 5 of each concept, here and with random weights, where that was asked for.
    high_heads: dict[str, int]
    high_heads_at_random: dict[str, int] | None
    neighbours: tuple[NeighbourCheck, ...]
    maps: MapCheck
    ablations: tuple[Ablation, ...]


def check_ground_truth(
    store: Store,
    run: str | None = None,
    at_random: Store | None = None,
    on_progress: Listener = ignore,
    overwrite: bool = False,
) -> GroundTruth:
    """Ask the five questions of a store of the image world that holds `patches`, and keep them as `truth/<run>`.

    The heads of a concept are those that the CCS run labels with it. `at_random` is a store of the same images
    and a random model of the same shape, with a CCS run of the same name. Raises SettingsError where the images
    are no scenes of the world, StoreError where other answers are kept there, unless `overwrite`, which replaces them.
    """
    found = read_scores(store, run)
    run = found.labels.run
    scenes = _scenes(store)
    classes = embed_classes(store, {factor: prompts(factor) for factor in FACTORS}, on_progress)
    truths = {factor: [value_of(each, factor) for each in scenes] for factor in FACTORS}
    concepts = _heads_by_concept(found)
    every = _all_heads(store)
    alike = similarities(store, mean_contributions(store, every), every)
    checked = GroundTruth(
        run=run,
        zero_shot=_zero_shot(store.embedding, classes, truths),
        high_heads=_high_heads(found),
        high_heads_at_random=_high_heads(read_scores(at_random, run)) if at_random else None,
        neighbours=tuple(
            _neighbours(store, concept, heads, truths[FACTOR_OF[concept]], alike) for concept, heads in concepts
        ),
        maps=_maps(store, scenes, on_progress),
        ablations=tuple(_ablation(store, concept, heads, classes, truths) for concept, heads in concepts),
    )
    results.save(store, "truth", run, {}, {"answers": asdict(checked)}, overwrite, on_progress)
    return checked


def read_ground_truth(store: Store, run: str) -> GroundTruth | None:
    """The stored answers of a CCS run; None where the questions were not asked."""
    if run not in results.runs(store, "truth"):
        return None
    settings = results.load_settings(store, "truth", run)
    # Whatever the file holds, numbers are numbers here.
    with results.as_written(store, "truth", run):
        kept = settings["answers"]
        at_random = kept["high_heads_at_random"]
        return GroundTruth(
            run=str(kept["run"]),
            zero_shot={
                factor: Accuracy(float(each["share"]), float(each["chance"]), int(each["images"]))
                for factor, each in kept["zero_shot"].items()
            },
            high_heads=_as_counts(kept["high_heads"]),
            high_heads_at_random=None if at_random is None else _as_counts(at_random),
            neighbours=tuple(
                NeighbourCheck(
                    str(each["concept"]),
                    _as_heads(each["heads"]),
                    float(each["through_heads"]),
                    float(each["through_all"]),
                    float(each["chance"]),
                    int(each["queries"]),
                )
                for each in kept["neighbours"]
            ),
            maps=MapCheck(
                int(kept["maps"]["images"]),
                *(float(kept["maps"][name]) for name in ("mass_inside", "area", "average_precision")),
            ),
            ablations=tuple(
                Ablation(
                    str(each["concept"]),
                    _as_heads(each["heads"]),
                    {factor: float(each["accuracies"][factor]) for factor in kept["zero_shot"]},
                )
                for each in kept["ablations"]
            ),
        )


def _as_heads(kept: Iterable[Iterable[Any]]) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in kept)


def _as_counts(kept: Mapping[str, Any]) -> dict[str, int]:
    return {concept: int(count) for concept, count in kept.items()}


def _scenes(store: Store) -> list[Scene]:
    scenes = []
    for row in store.samples().select(["key", "metadata"]).to_pylist():
        known = json.loads(row["metadata"] or "{}")
        if not {"seed", "split", "index", "objects"} <= known.keys():
            raise SettingsError(
                f"{store.path}: {row['key']} is no scene of the image world; make shards with headspan demo or "
                "tools/make_shards.py --world"
            )
        scenes.append(scene(known["seed"], known["split"], known["index"]))
    return scenes


def _heads_by_concept(found: ConceptConsistency) -> list[tuple[str, tuple[Head, ...]]]:
    labels = found.labels
    named = [
        (labels.names[at][head], (layer, head))
        for at, layer in enumerate(labels.layers)
        for head in range(found.scores.shape[1])
    ]
    return [
        (concept, heads) for concept in FACTOR_OF if (heads := tuple(head for label, head in named if label == concept))
    ]


def _high_heads(found: ConceptConsistency) -> dict[str, int]:
    return {
        concept: sum(found.group(layer, head) == "high" for layer, head in heads)
        for concept, heads in _heads_by_concept(found)
    }


def _ablation(
    store: Store,
    concept: str,
    heads: tuple[Head, ...],
    classes: dict[str, Classes],
    truths: dict[str, list[str | None]],
) -> Ablation:
    left = _zero_shot(mean_ablated(store, heads), classes, truths)
    return Ablation(concept, heads, {factor: each.share for factor, each in left.items()})


def _zero_shot(
    embeddings: Float32[np.ndarray, "images joint"],
    classes: dict[str, Classes],
    truths: dict[str, list[str | None]],
) -> dict[str, Accuracy]:
    return {factor: accuracy(classes[factor].name(embeddings), truths[factor]) for factor in classes}


def _all_heads(store: Store) -> list[Head]:
    return [(layer, head) for layer in store.layers for head in range(store.heads_per_layer)]


def _neighbours(
    store: Store,
    concept: str,
    heads: tuple[Head, ...],
    truths: Sequence[str | None],
    alike: Float32[np.ndarray, "image image"],
) -> NeighbourCheck:
    """Queries and candidates are the images that have a value of the factor; `alike` is what all heads say of all."""
    having = np.flatnonzero([truth is not None for truth in truths])
    values = np.array([truth for truth in truths if truth is not None])
    same = values[:, None] == values
    np.fill_diagonal(same, False)
    through_heads = similarities(store, mean_contributions(store, heads)[having], heads)[:, having]
    return NeighbourCheck(
        concept,
        heads,
        _precision(through_heads, same),
        _precision(alike[np.ix_(having, having)], same),
        float(same.sum() / (same.size - len(same))),
        len(having),
    )


def _precision(scores: Float32[np.ndarray, "image image"], same: Bool[np.ndarray, "image image"]) -> float:
    """Precision@10 of the images' scores for one another."""
    # No image is its own neighbour.
    scores = np.where(np.eye(len(scores), dtype=bool), -np.inf, scores)
    nearest = np.argpartition(-scores, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    return float(np.take_along_axis(same, nearest, axis=1).mean())


def _maps(store: Store, scenes: Sequence[Scene], on_progress: Listener) -> MapCheck:
    """Over scenes of one kind of object, through all heads; from each map, the mean over all texts is taken.

    That the mean over classes is subtracted and negative evidence cut off is the published procedure
    (Gandelsman et al., ICLR 2024); a map's patches are joined to pixels bilinearly.
    """
    texts = {(colour, shape): with_article(f"{colour} {shape}") for colour in COLOURS for shape in SHAPES}
    classes = embed_classes(store, {"thing": {text: [text] for text in texts.values()}}, on_progress)
    vectors = classes["thing"].vectors
    order = {thing: at for at, thing in enumerate(texts)}
    every = _all_heads(store)
    chosen = [image for image, each in enumerate(scenes) if each.repeated][:_MAPPED_IMAGES]
    masks = render([scenes[image] for image in chosen], masks=True)[1] > 0
    measured = []
    mean = vectors.mean(axis=0)
    for image, mask in zip(chosen, masks, strict=True):
        thing = scenes[image].things[0]
        vector = vectors[order[thing.colour, thing.shape]] - mean
        evidence = resized(text_maps(store, image, vector[None], every)[0], mask.shape)
        positive = np.maximum(evidence, 0)
        measured.append((positive[mask].sum() / positive.sum(), mask.mean(), average_precision(evidence, mask)))
    inside, area, precision = np.mean(measured, axis=0)
    return MapCheck(len(chosen), float(inside), float(area), float(precision))
