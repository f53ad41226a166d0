"""Does the Modality Dominance Score find the features that images, texts, or both have in truth?

Scenes of the image world whose captions leave out two factors (in images only), name styles and kinds of background
that no image shows (in texts only), and name everything else (in both). `world.feature_checks` says which modality a
feature has in truth. Every learner is trained on one set of scenes, twice, and scored on another one. Nulls: the same
dictionary scored with captions shuffled, and a dictionary that was trained and scored on shuffled captions. Rows with
a bias for each side have one training, so that all fit into seven minutes of two cores, which train side by side.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import benchmark
from headspan.config import PrecomputeSettings
from headspan.errors import percent
from headspan.features.learners.kinds import ALIGNED, LEARNERS, MATCHING_PURSUIT, NON_NEGATIVE, TOPK
from headspan.features.learners.settings import SEPARATE
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.shuffling import shuffle_captions
from headspan.features.scores.over_pairs import score_pairs
from headspan.features.scores.result import CROSS_MODAL, IMAGE_DOMINANT, TEXT_DOMINANT
from headspan.features.training.dictionary import Dictionary
from headspan.features.training.train import train
from headspan.run.precompute import precompute
from headspan.store.reader import Store
from headspan.world import write_world_shards
from headspan.world.feature_checks import ModalityAUC, feature_truth, modality_auc

QUESTION = "modality of features on the image world"
DUE_TO = (
    "A feature of both that one side uses is one half of a split dictionary. TopK with one input bias splits most "
    "of what both sides hold: the means of images and of texts lie far apart, so one bias centres neither side. A "
    "bias for each side helps. Matching pursuit has no bias, but spends a dozen of its atoms on the mean of images, "
    "and the rest is mostly shared. Non-negative contrastive learning keeps only what a pair shares: it has no "
    "features of images only or of texts only, and so no area. Shuffling captions hardly changes the areas, when "
    "dictionaries are scored or when they are trained: MDS and the energy score measure which side uses a feature, "
    "and not whether the sides of a pair share it, and the model has brought both sides into one space before."
)
WITHOUT, WORDS = ("texture", "background_colour"), ("style", "background")
# Scenes of other seeds were used to choose the settings below.
_TRAINED_ON, _SCORED_ON = 17, 18
_SCENES, _SCORED, _SEEDS = 8_000, 3_000, (1, 2)
_RUN = "run.zarr"
_SIZES: dict[str, Any] = {"features": 768, "k": 12}
_TRAINING: dict[str, Any] = {"steps": 400, "batch": 256, "lr": 2e-3, "device": "cpu"}
_TOY: dict[str, Any] = {"features": 24, "k": 4}
# By the name of a row: the learner, and its settings where they are not the defaults.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in LEARNERS},
    "topk, a bias for each side": (TOPK, {"input_bias": SEPARATE}),
    "matching_pursuit, a bias for each side": (MATCHING_PURSUIT, {"input_bias": SEPARATE}),
    "aligned, a bias for each side": (ALIGNED, {"input_bias": SEPARATE, "mask_strongest": False}),
}


@dataclass(frozen=True, slots=True)
class _Training:
    """One dictionary: the row that it is of, its seed, and whether it is trained on shuffled captions."""

    name: str
    seed: int
    shuffled: bool = False


def run(toy: bool) -> dict[str, Any]:
    """For each learner: areas under the ROC curve by score, seed and null, and how many features have a truth."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        scenes, scored = (48, 24) if toy else (_SCENES, _SCORED)
        _store(folder / "scored", scored, _SCORED_ON)
        # The vectors of captions are computed once, before processes share them.
        open_pairs(_store(folder / "trained", scenes, _TRAINED_ON), keep=folder / "vectors")
        trainings = [_Training(TOPK, 1), _Training(TOPK, 1, shuffled=True)] if toy else _trainings()
        if toy:
            results = [_measured(each, folder, toy) for each in trainings]
        else:
            with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as processes:
                futures = [processes.submit(_measured, each, folder, toy) for each in trainings]
                results = [each.result() for each in futures]
    found: dict[str, Any] = {each.name: [] for each in sorted(trainings, key=lambda each: [*ROWS].index(each.name))}
    null = {}
    for each, result in zip(trainings, results, strict=True):
        if each.shuffled:
            null[each.name] = result
        else:
            found[each.name].append(result)
    return {
        "scenes": scenes,
        "scored": scored,
        "without": WITHOUT,
        "words": WORDS,
        **(_TOY if toy else {**_SIZES, **_TRAINING}),
        "rows": found,
        "trained_on_shuffled": null,
    }


def _trainings() -> list[_Training]:
    """All trainings, those first that take longest, so that two processes end together."""
    own = [_Training(name, seed) for name in ROWS for seed in (_SEEDS if name in LEARNERS else _SEEDS[:1])]
    # The learners' defaults only; the other rows differ from them in the input bias.
    null = [_Training(name, _SEEDS[0], shuffled=True) for name in LEARNERS]
    long = (MATCHING_PURSUIT, ALIGNED)
    return sorted(own + null, key=lambda each: ROWS[each.name][0] not in long)


def _measured(training: _Training, folder: Path, toy: bool) -> dict[str, Any]:
    """Train a dictionary and score it."""
    pairs = open_pairs(folder / "trained" / _RUN, keep=folder / "vectors")
    if training.shuffled:
        pairs = shuffle_captions(pairs, 0)
    dictionary = _trained(pairs, training, folder, toy)
    return _scored(dictionary, Store(folder / "scored" / _RUN), folder)


def _store(folder: Path, scenes: int, seed: int) -> Store:
    shards = write_world_shards(folder / "shards", scenes, seed, without=WITHOUT, words=WORDS)
    out = folder / _RUN
    precompute(PrecomputeSettings(shards=(shards,), out=str(out), model="reference", layers="last1", emit=("heads",)))
    return Store(out)


def _trained(pairs: Pairs, training: _Training, folder: Path, toy: bool) -> Dictionary:
    learner, settings = ROWS[training.name]
    sizes = {key: value for key, value in (_TOY if toy else _SIZES).items() if key != "k" or learner != NON_NEGATIVE}
    how = {**_TRAINING, "steps": 3} if toy else _TRAINING
    name = training.name.replace(", ", "-").replace(" ", "-")
    out = folder / f"{name}-{training.seed}{'-shuffled' * training.shuffled}"
    return train(pairs, out, learner, seed=training.seed, **how, **sizes, **settings)


def _scored(dictionary: Dictionary, store: Store, folder: Path) -> dict[str, Any]:
    truth = feature_truth(store, dictionary, keep=folder / "vectors")
    scores = score_pairs(open_pairs(store, keep=folder / "vectors"), dictionary.learner, run="truth")
    of_both = truth.modality == CROSS_MODAL
    return {
        "mds": _as_json(modality_auc(truth, scores.mds)),
        "energy": _as_json(modality_auc(truth, scores.energy)),
        "shuffled_mds": _as_json(modality_auc(truth, scores.shuffled_mds)),
        "features": [truth.of(each) for each in (IMAGE_DOMINANT, TEXT_DOMINANT, CROSS_MODAL)],
        # Features of both sides that only one side uses: halves of a split dictionary.
        "split": float(np.mean(np.abs(scores.mds[of_both] - 0.5) > 0.4)) if of_both.any() else None,
        "alive": int((scores.active > 0).sum()),
        # None of learners without a decoder.
        "fvu": [scores.quality.get(f"{side}_fvu") for side in ("image", "text")],
        "l0": [scores.quality[f"{side}_l0"] for side in ("image", "text")],
    }


def _as_json(auc: ModalityAUC) -> list[float | None]:
    """The mean, and the areas of images only, texts only, and both."""
    areas = [auc.mean, auc.image_only, auc.text_only, auc.cross_modal]
    return [None if each is None else round(each, 4) for each in areas]


def table(line: Mapping[str, Any]) -> list[list[str]]:
    """A row for each learner, and for learners with a bias for each side."""
    found = [
        [
            "learner",
            "AUC of MDS",
            "images only, texts only, both",
            "AUC of the energy score",
            "MDS, captions shuffled",
            "trained on shuffled captions: MDS, energy",
            "features with a truth",
            "features of both that one side uses",
            "variance unexplained",
        ]
    ]
    for name, runs in line["rows"].items():
        null = line["trained_on_shuffled"].get(name)
        found.append(
            [
                name,
                _over_seeds([each["mds"][0] for each in runs]),
                ", ".join(_mean([each["mds"][part] for each in runs]) for part in (1, 2, 3)),
                _over_seeds([each["energy"][0] for each in runs]),
                _mean([each["shuffled_mds"][0] for each in runs]),
                "" if null is None else f"{_mean([null['shuffled_mds'][0]])}, {_mean([null['energy'][0]])}",
                f"{np.mean([sum(each['features']) for each in runs]):.0f} of"
                f" {np.mean([each['alive'] for each in runs]):.0f} in use",
                _percent([each["split"] for each in runs]),
                ", ".join(_percent([each["fvu"][side] for each in runs]) for side in (0, 1)),
            ]
        )
    return found


def summary(line: Mapping[str, Any]) -> list[list[str]]:
    """The columns of the table that the guide shows."""
    chosen = (0, 1, 3, 5, 7)
    return [[row[column] for column in chosen] for row in table(line)]


def _known(values: Sequence[float | None]) -> list[float]:
    return [each for each in values if each is not None and np.isfinite(each)]


def _mean(values: Sequence[float | None]) -> str:
    known = _known(values)
    return f"{np.mean(known):.3f}" if known else "–"


def _percent(values: Sequence[float | None]) -> str:
    known = _known(values)
    return percent(float(np.mean(known))) if known else "–"


def _over_seeds(values: Sequence[float | None]) -> str:
    """The mean over seeds, and the least and largest value."""
    known = _known(values)
    ends = f"{min(known):.3f} to {max(known):.3f}" if len(known) > 1 else "one training"
    return f"{_mean(known)} ({ends})" if known else "–"


if __name__ == "__main__":
    benchmark(QUESTION, run)
