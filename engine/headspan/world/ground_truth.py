"""Check what the analyses found in a store of the image world against the scenes it was made from.

It answers eight questions:

1. Zero-shot: does the model name every factor of a scene?
2. High heads: which concepts have heads whose first five texts all speak of that concept (CCS 5)?
3. Neighbours: do nearest images through a concept's heads share the concept's factor?
4. Maps of objects: does the map of a text fall on the objects that it names?
5. Ablation: does a factor's accuracy fall if the heads of its concept are replaced by their means?
6. Maps of values: does the map of one value, through its concept's heads, fall on what has the value?
7. Contrasts: has the contrast of two objects' texts the right sign on each of them?
8. Rankings: do pursuit and spectra rank the heads first whose ablation hurts a factor?

Scenes are drawn again from the samples' metadata, so values and masks come from the world itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32

from headspan.concepts.ccs import read_scores
from headspan.concepts.consistency import ConceptConsistency
from headspan.errors import SettingsError, StoreError
from headspan.events import Listener, ignore
from headspan.prune.direct.ablation import mean_ablated
from headspan.store import results
from headspan.store.head_space import Head
from headspan.store.lineage import lineage_of
from headspan.store.reader import Store
from headspan.store.write.save_result import save_result
from headspan.tasks.zero_shot import Accuracy, Classes, accuracy, embed_classes
from headspan.world import FACTORS, Scene, prompts, scene, value_of
from headspan.world.checks import FACTOR_OF, Ablation, GroundTruth
from headspan.world.checks_json import ground_truth_as_json, ground_truth_from_json
from headspan.world.map_checks import DESCRIPTIONS, MapChecks, descriptions
from headspan.world.neighbour_checks import neighbour_checks
from headspan.world.ranking_checks import ranking_checks
from headspan.world.rankings import Ranking, magnitudes, pursuit_scores, spectra_scores, text_scores

# A scene's value of every factor; None where it has no single one.
Truths = Mapping[str, Sequence[str | None]]


def check_ground_truth(
    store: Store,
    run: str | ConceptConsistency | None = None,
    controls: Mapping[str, Store | GroundTruth] | None = None,
    on_progress: Listener = ignore,
    overwrite: bool = False,
    *,
    save: bool = False,
) -> GroundTruth:
    """Answer the eight questions about a store of the image world.

    `run` is the name of a CCS run, or what `concept_consistency` returned; None means the store's only run. Its labels
    say which heads belong to a concept. If a run is named, or with `save`, the result is saved as `truth/<run>`;
    otherwise nothing is written. `controls` are other models to compare with, by name: a store of the same scenes with
    a CCS run of the same name, or a result that was measured before. All stores must hold `patches`.

    Raises SettingsError if the images are not scenes of the world, if a control has other scenes, or if patches are
    missing. Raises StoreError if a different result is stored under that name, unless `overwrite`, which replaces it;
    and NotSavedError, which holds the result, if the store cannot be written.
    """
    consistency = run if isinstance(run, ConceptConsistency) else read_scores(store, run)
    checked = _measure(store, consistency, on_progress)
    found = {
        name: each if isinstance(each, GroundTruth) else _measure(each, read_scores(each, checked.run), on_progress)
        for name, each in (controls or {}).items()
    }
    for name, control in found.items():
        if _questions(control) != _questions(checked):
            raise SettingsError(
                f"{store.path}: the control {name!r} has other scenes; give a control of the same shards"
            )
    by_chance = consistency.chance.expected_high if consistency.chance else {}
    checked = replace(checked, controls=found, high_by_chance=by_chance)
    return save_result(
        store,
        "truth",
        checked.run,
        checked,
        {},
        {"answers": ground_truth_as_json(checked)},
        {f"ccs/{checked.run}": consistency.lineage},
        save or isinstance(run, str),
        overwrite,
        on_progress,
    )


def read_ground_truth(store: Store, run: str) -> GroundTruth | None:
    """The stored result for a CCS run, or None if it was not checked. Raises StoreError if it is damaged."""
    if run not in results.runs(store, "truth"):
        return None
    settings = results.load_settings(store, "truth", run)
    with results.as_written(store, "truth", run):
        found = ground_truth_from_json(settings["answers"])
    lineage, by_chance = lineage_of(store, "truth", run), _high_by_chance(store, run)
    return replace(found, lineage=lineage, high_by_chance=by_chance)


def _high_by_chance(store: Store, run: str) -> dict[str, float]:
    """The expected number of high heads of each concept by chance; empty if it is not known."""
    try:
        chance = read_scores(store, run).chance
    except StoreError:
        # A result is readable without the scores that it was made from.
        return {}
    return chance.expected_high if chance else {}


def _questions(truth: GroundTruth) -> dict[str, tuple[float, int]]:
    """Chance and number of images of every factor: equal for equal scenes, whatever the model."""
    return {factor: (each.chance, each.images) for factor, each in truth.zero_shot.items()}


def _measure(store: Store, consistency: ConceptConsistency, on_progress: Listener) -> GroundTruth:
    scenes = scenes_of(store)
    sets = {**{factor: prompts(factor) for factor in FACTORS}, DESCRIPTIONS: descriptions()}
    classes = embed_classes(store, sets, on_progress)
    named = classes.pop(DESCRIPTIONS)
    truths = {factor: [value_of(each, factor) for each in scenes] for factor in FACTORS}
    concepts = dict(heads_by_concept(consistency))
    maps = MapChecks(store, scenes)
    return GroundTruth(
        run=consistency.labels.run,
        zero_shot=_zero_shot(store.embedding, classes, truths),
        high_heads=_high_heads(consistency),
        neighbours=neighbour_checks(store, concepts, truths),
        maps=maps.kinds(named),
        ablations=tuple(_ablation(store, concept, heads, classes, truths) for concept, heads in concepts.items()),
        text_maps=maps.of_factors(concepts, classes),
        contrasts=maps.contrasts(concepts, classes, named),
        rankings=ranking_checks(store, classes, truths, _rankings(store, classes, on_progress)),
        about=f"model {store.attributes['model']}, weights {store.attributes['pretrained'] or 'of its own'}",
    )


def _rankings(store: Store, classes: Mapping[str, Classes], on_progress: Listener) -> dict[str, Ranking]:
    return {
        "head pursuit": pursuit_scores(store, classes),
        "spectra": spectra_scores(store, on_progress),
        "text shares": text_scores(store, classes),
        "magnitude": magnitudes(store, classes),
    }


def scenes_of(store: Store) -> list[Scene]:
    """The scenes of a store's images, drawn again. Raises SettingsError if they are not scenes of the world."""
    scenes = []
    for row in store.samples().select(["key", "metadata"]).to_pylist():
        known = json.loads(row["metadata"] or "{}")
        if not {"seed", "split", "index", "objects", "style", "background"} <= known.keys():
            raise SettingsError(
                f"{store.path}: {row['key']} is not a scene of the image world; make shards with headspan demo or "
                "tools/make_shards.py --world"
            )
        drawn = scene(known["seed"], known["split"], known["index"])
        # Some shards draw all scenes in one style, or on one kind of background.
        scenes.append(replace(drawn, style=known["style"], background=known["background"]))
    return scenes


def heads_by_concept(consistency: ConceptConsistency) -> list[tuple[str, tuple[Head, ...]]]:
    """The concepts that label at least one head, in the order of FACTOR_OF, each with its heads."""
    labels = consistency.labels
    named = [
        (labels.names[at][head], (layer, head))
        for at, layer in enumerate(labels.layers)
        for head in range(consistency.scores.shape[1])
    ]
    return [
        (concept, heads) for concept in FACTOR_OF if (heads := tuple(head for label, head in named if label == concept))
    ]


def _high_heads(consistency: ConceptConsistency) -> dict[str, int]:
    return {
        concept: sum(consistency.group(layer, head) == "high" for layer, head in heads)
        for concept, heads in heads_by_concept(consistency)
    }


def _zero_shot(
    embeddings: Float32[np.ndarray, "images joint"], classes: Mapping[str, Classes], truths: Truths
) -> dict[str, Accuracy]:
    return {factor: accuracy(classes[factor].name(embeddings), truths[factor]) for factor in classes}


def _ablation(
    store: Store, concept: str, heads: tuple[Head, ...], classes: Mapping[str, Classes], truths: Truths
) -> Ablation:
    left = _zero_shot(mean_ablated(store, heads), classes, truths)
    return Ablation(concept, heads, {factor: each.share for factor, each in left.items()})
