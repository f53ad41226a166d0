"""Scores of features as a store holds them, as the run `features/<run>`: saving them, and reading them without torch.

Every array of the scores is an array of the run, and everything else a setting. Captions are not copied: top captions
are images, as top images are, and the samples of the store hold their text. Images are saved as rows of the store's
plan, because their indices change when an unfinished store grows; runs of earlier versions hold indices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from headspan.errors import StoreError
from headspan.events import Listener, ignore
from headspan.features.pairs.space import Space
from headspan.features.scores.result import FeatureScores
from headspan.store import results
from headspan.store.lineage import Lineage, lineage_of
from headspan.store.reader import Store
from headspan.store.result_values import arrays_of, json_numbers, numbers_from_json
from headspan.store.write.save_result import save_result

KIND = "features"
# What identifies the run rather than being part of it.
_ABOUT_RUN = ("run", "lineage")
# Arrays of image indices, and what arrays of their rows are called.
_ROWS_OF = {"top_images": "top_image_rows", "top_captions": "top_caption_rows"}
_WORDS = ("dictionary", "dictionary_sha256", "learner", "judge", "name_pool")
# What names add to a run. Uses of features depend on none of it.
_OF_NAMES = tuple(each.name for each in fields(FeatureScores) if each.name == "names" or each.name.startswith("name_"))


def save_scores(
    store: Store, scores: FeatureScores, overwrite: bool = False, on_progress: Listener = ignore
) -> FeatureScores:
    """Save scores as `features/<scores.run>`; returns them with their lineage.

    Scores that gain names, or other names, stay the same run, and names stay if the same scores are saved without.
    Raises StoreError if there is a run of that name with other content and `overwrite` is false, or if the pool that
    features are named from is not in the store; NotSavedError, which holds the scores, if the store cannot be written.
    """
    results.check_run(scores.run)
    return save_result(
        *(store, KIND, scores.run, scores, _with_rows(store, scores), settings_of(scores), _sources(store, scores)),
        overwrite=overwrite,
        on_progress=on_progress,
        additions=_OF_NAMES,
    )


def read_scores(store: Store | str | Path, run: str | None = None) -> FeatureScores:
    """Read the scores of features from a store; without `run`, of the only run.

    Raises StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    store = store if isinstance(store, Store) else Store(store)
    run = results.only_run(store, KIND, run)
    arrays, settings = results.load(store, KIND, run)
    with results.as_written(store, KIND, run):
        known = {each.name for each in fields(FeatureScores)}
        arrays |= {
            name: store.images_of_rows(arrays[rows]).astype(np.int64)
            for name, rows in _ROWS_OF.items()
            if rows in arrays
        }
        found: dict[str, Any] = {name: value for name, value in {**settings, **arrays}.items() if name in known}
        for of, names in ((int, ("pairs", "seed")), (str, _WORDS)):
            found |= {name: of(settings[name]) for name in names if name in settings}
        if "name_coherence" in settings:
            found["name_coherence"] = float(settings["name_coherence"])
        found["similarity_sizes"] = tuple(map(int, settings["similarity_sizes"]))
        for name in ("quality", "name_chance"):
            found[name] = numbers_from_json(settings.get(name, {}))
        if "names" in settings:
            found["names"] = tuple(tuple(map(str, names)) for names in settings["names"])
        if settings.get("space") is not None:
            found["space"] = Space.from_json(settings["space"])
        return FeatureScores(run=run, lineage=lineage_of(store, KIND, run), **found)


def settings_of(scores: FeatureScores) -> dict[str, Any]:
    """The settings of a run, as JSON values. NaN, which JSON lacks, is null; names are left out until there are any."""
    found: dict[str, Any] = {}
    for each in fields(scores):
        value = getattr(scores, each.name)
        if each.name in _ABOUT_RUN or isinstance(value, np.ndarray) or value is None or value in ((), {}):
            continue
        if isinstance(value, Space):
            found[each.name] = value.as_json()
        elif isinstance(value, Mapping):
            found[each.name] = json_numbers(value)
        else:
            found[each.name] = value
    # Always there, even if no similarity was measured.
    return {"similarity_sizes": (), **found}


def _with_rows(store: Store, scores: FeatureScores) -> dict[str, results.Named]:
    """The arrays of scores, with the rows of images instead of their indices; -1 where there is none."""
    found = arrays_of(scores)
    # A run of an earlier version stays the same run when it gains names.
    earlier = results.load(store, KIND, scores.run)[0] if results.sound(store, KIND, scores.run) else {}
    for name, rows in _ROWS_OF.items():
        images, axes = found[name]
        if name not in earlier:
            del found[name]
        if images.max(initial=-1) >= store.images:
            raise StoreError(
                f"{store.path}: has {store.images:,} images, but {scores.run} names image {images.max():,}; save "
                "scores with the store that they are of"
            )
        # The row of image -1 is not used.
        found[rows] = np.where(images < 0, -1, store.rows[images] if store.images else -1).astype(np.int64), axes
    return found


def _sources(store: Store, scores: FeatureScores) -> dict[str, Lineage | None]:
    """The lineage of the pool's texts that the features are named from.

    Raises StoreError if the pool is not in the store.
    """
    pool = scores.name_pool
    if pool is None:
        return {}
    if not results.sound(store, "texts", pool, metadata_alone=True):
        raise StoreError(
            f"{store.path}: features are named from the pool {pool!r}, which is not in the store; name them with "
            "saved=True, which keeps the pool too"
        )
    return {f"texts/{pool}": lineage_of(store, "texts", pool)}
