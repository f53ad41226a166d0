"""The whole chain on one's own machine in a minute: shards, store, TEXTSPAN, CCS, sparse features, report.

The images are held-out scenes of the image world, and the model is the reference CLIP. So the report begins with the
analyses' scores against the known scenes, beside the scores of two controls: the reference model before the training
step that specialises its heads, whose scores ship with headspan, and random weights, for which the chain runs again.
A small dictionary of sparse features is learned from the scenes and their captions, scored and named.

A demo replaces an earlier demo in its folder and deletes nothing else; `demo_folder` says how.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.config import PrecomputeSettings
from headspan.demo_folder import DemoFolder
from headspan.events import Listener, ignore
from headspan.features.naming import name_features
from headspan.features.pairs.opening import open_pairs
from headspan.features.scoring import score
from headspan.features.training.train import train
from headspan.io.files import delete_folder
from headspan.report.collect import write_report
from headspan.run.precompute import precompute
from headspan.run.summary import Summary
from headspan.spans.over_store import textspan
from headspan.store.reader import Store
from headspan.world import write_world_shards
from headspan.world.checks import GroundTruth
from headspan.world.ground_truth import check_ground_truth
from headspan.world.reference_scores import CONTRASTIVE_ONLY, RANDOM, reference_scores

__all__ = ["DemoResult", "run"]

# The reference model was trained on seed 0 and tuned on seed 1.
IMAGES, IMAGES_PER_SHARD, SEED, SPLIT = 2000, 500, 2, "held_out"
# A learner whose features do not split into those of images and those of captions; trained for a few seconds.
LEARNER, FEATURES, ACTIVE, STEPS, BATCH = "group_sparse", 256, 8, 400, 256
_SHARDS, _STORE, _AT_RANDOM, _REPORT = "shards", "run.zarr", "random.zarr", "report.html"
_DICTIONARY, _CAPTIONS = "run.features", "captions"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The path of the demo's report, the scores against the ground truth, and the summary of `precompute`."""

    report: Path
    truth: GroundTruth
    summary: Summary


def run(out: str | Path, on_progress: Listener = ignore) -> DemoResult:
    """Draw scenes, precompute, run the analyses and write the report, all in the folder `out`. Needs torch.

    An earlier demo in the folder is replaced. If the folder holds anything else, nothing is deleted, and StoreError is
    raised.
    """
    place = DemoFolder.begin(out)
    shards = draw_scenes(place, IMAGES, IMAGES_PER_SHARD, SEED, on_progress)
    store, summary = analyse_scenes(
        PrecomputeSettings(
            shards=(shards,),
            out=str(place.making / _STORE),
            model="reference",
            layers="all",
            emit=("heads", "patches", "mlps"),
        ),
        on_progress,
    )
    at_random, _ = analyse_scenes(
        PrecomputeSettings(
            shards=(shards,),
            out=str(place.making / _AT_RANDOM),
            model="reference",
            pretrained="random:0",
            layers="all",
            emit=("heads", "patches"),
        ),
        on_progress,
    )
    truth = check_ground_truth(
        store,
        controls={CONTRASTIVE_ONLY: reference_scores()[CONTRASTIVE_ONLY], RANDOM: at_random},
        on_progress=on_progress,
        save=True,
    )
    _learn_features(store, place, on_progress)
    write_report(store, place.making / _REPORT, on_progress=on_progress)
    place.move(_STORE, _AT_RANDOM, _REPORT)
    place.making.rmdir()
    return DemoResult(place.folder / _REPORT, truth, replace(summary, path=str(place.folder / _STORE)))


def draw_scenes(
    place: DemoFolder, images: int, images_per_shard: int, seed: int, on_progress: Listener = ignore
) -> str:
    """Write held-out scenes as shards of a demo; returns a brace pattern of the shards.

    Stores record the paths of their shards, so the shards are moved to their final place at once.
    """
    made = write_world_shards(
        place.making / _SHARDS,
        images,
        seed,
        images_per_shard=images_per_shard,
        split=SPLIT,
        on_progress=on_progress,
    )
    place.move(_SHARDS)
    return str(place.folder / _SHARDS / Path(made).name)


def analyse_scenes(settings: PrecomputeSettings, on_progress: Listener = ignore) -> tuple[Store, Summary]:
    """Precompute a store, find the text spans of its last four layers' heads, label and score the heads.

    Four layers and the pool's concepts as labels follow the published procedure, with 20 texts for each head.
    """
    summary = precompute(settings, on_progress)
    store = Store(settings.out)
    textspan(store, "world", texts_per_head=20, layers=store.layers[-4:], on_progress=on_progress, save=True)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    return store, summary


def _learn_features(store: Store, place: DemoFolder, on_progress: Listener) -> None:
    """Train a dictionary on the store's pairs, score its features, and name them by the pool of the heads' texts."""
    captions = place.making / _CAPTIONS
    pairs = open_pairs(store, keep=captions, on_progress=on_progress)
    train(
        pairs,
        place.making / _DICTIONARY,
        LEARNER,
        features=FEATURES,
        k=ACTIVE,
        steps=STEPS,
        batch=min(BATCH, len(pairs)),
        on_progress=on_progress,
    )
    # Scores record the path of their dictionary.
    place.move(_DICTIONARY)
    scores = score(pairs, place.folder / _DICTIONARY, run="world", on_progress=on_progress)
    name_features(store, scores, "world", saved=True, on_progress=on_progress)
    delete_folder(captions)
