"""Score the features of a dictionary over the images and captions of a store, and save the scores as a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from headspan.config import AUTO
from headspan.events import Listener, ignore
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.pairs.space import EMBEDDING
from headspan.features.saved import KIND, save_scores
from headspan.features.scores.over_pairs import score_pairs
from headspan.features.scores.result import FeatureScores
from headspan.features.scores.sparse_evaluation import evaluate_codes
from headspan.features.training.dictionary import Dictionary, open_dictionary
from headspan.run.devices import named_devices
from headspan.store import results
from headspan.store.reader import Store, open_store
from headspan.store.selection import Images
from headspan.store.taken_runs import refuse_made_differently
from headspan.tasks.task import Task


def score(
    store: Store | str | Path | Pairs,
    dictionary: Dictionary | str | Path,
    *,
    run: str | None = None,
    captions: bool = True,
    images: Images | None = None,
    judge: Float[np.ndarray, "image width"] | Store | str | Path | None = None,
    tasks: Sequence[str | Path | Task] = (),
    seed: int = 0,
    device: str = AUTO,
    save: bool = False,
    overwrite: bool = False,
    keep: str | Path | None = None,
    weights: str | Path | None = None,
    on_progress: Listener = ignore,
) -> FeatureScores:
    """Score every feature of a dictionary over all pairs of a store, in one pass.

    Memory does not depend on the number of pairs. If a run is named, or with `save`, the scores are saved as
    `features/<run>`; otherwise nothing is written.

    Args:
        store: A store, open or as a path, or its pairs as `open_pairs` gives them.
        dictionary: The dictionary, open or as its folder.
        run: The name of the run; by default that of the dictionary's folder.
        captions: Whether captions are scored too; without them features have no modality.
        images: Some images, as in `Store.moments`.
        judge: The encoder by which a feature's samples are alike: an array with a vector for each image of the store,
            or a store of the same images by another model. By default the embedding that features are learned from,
            which is circular.
        tasks: Tasks of classification, whose zero-shot accuracy with codes stands beside that of the embeddings.
        seed: Decides the order of the pairs, the caption of each image, and random samples.
        device: The device that codes are computed on.
        save: Whether the scores are saved although no run is named.
        overwrite: Whether a run of the same name with other scores is replaced.
        keep: The folder that keeps the vectors of captions, as in `open_pairs`.
        weights: The place of the model's weights, as in `text_vectors`.
        on_progress: A listener.

    Raises:
        SettingsError: If dictionary and store are of different spaces, the judge is of other images, or there are too
            few pairs.
        StoreError: If the dictionary or the store is damaged, or the run exists with other content.
        NotSavedError: If the store cannot be written; the error holds the scores.
    """
    opened = dictionary if isinstance(dictionary, Dictionary) else open_dictionary(dictionary)
    name = run or re.sub(r"[^A-Za-z0-9._-]+", "-", opened.folder.resolve().name).strip("._-") or "features"
    results.check_run(name)
    given = store.stores[0] if isinstance(store, Pairs) else store
    where = given if isinstance(given, Store) else open_store(given)
    saved = name if save or run is not None else None
    made = {"dictionary_sha256": opened.sha256, "learner": opened.kind, "seed": seed}
    refuse_made_differently(where, KIND, saved, made, overwrite, {"dictionary_sha256": "dictionary"})
    pairs = (
        store
        if isinstance(store, Pairs)
        else open_pairs(
            where,
            opened.space,
            captions=captions and opened.space.kind == EMBEDDING,
            images=images,
            keep=keep,
            weights=weights,
            on_progress=on_progress,
        )
    )
    refuse_made_differently(where, KIND, saved, {"pairs": len(pairs)}, overwrite)
    (chosen,) = named_devices(device)
    learner = opened.learner.to(chosen)
    try:
        scores = score_pairs(
            pairs,
            learner,
            run=name,
            dictionary=str(opened.folder),
            dictionary_sha256=opened.sha256,
            judge=judge,
            seed=seed,
            on_progress=on_progress,
        )
        figures = evaluate_codes(pairs, learner, tasks, seed=seed, weights=weights, on_progress=on_progress)
    finally:
        learner.to("cpu")
    scores = replace(scores, quality={**scores.quality, **figures})
    return scores if saved is None else save_scores(where, scores, overwrite, on_progress)
