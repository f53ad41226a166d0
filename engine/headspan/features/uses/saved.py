"""Results of uses of features as a store holds them, as the run `uses/<run>`: saving them, and reading without torch.

A result is made from the run of scores that gives features their classes, and is of an older one if that changes.
Everything is a setting but the arrays of an edited image: its embedding and its neighbours, with those of its controls
in the rows behind it. Neighbours are saved as rows of the store's plan, as in `features.saved`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from headspan.events import Listener
from headspan.features.scores.result import FeatureScores
from headspan.features.uses.attack_result import AttackRow, AttackStudy
from headspan.features.uses.bias_result import BiasProbe, BiasRow
from headspan.features.uses.edit_result import EditedImage, EditRow, EditStudy, FactorShares
from headspan.features.uses.use import Use
from headspan.prune.studies.statistics import Interval
from headspan.store import results
from headspan.store.lineage import lineage_of
from headspan.store.reader import Store
from headspan.store.result_values import as_json, number_from_json, numbers_from_json
from headspan.store.taken_runs import refuse_differences, refuse_other_sources
from headspan.store.write.save_result import save_result

KIND, SCORES = "uses", "features"
# What the setting `use` says of each result that is a table of rows, with the class of the rows.
_TABLES: dict[str, tuple[type[Use], type[Any]]] = {
    "bias": (BiasProbe, BiasRow),
    "attack": (AttackStudy, AttackRow),
    "edits": (EditStudy, EditRow),
}
_EDIT = "edit"
# The field that identifies the run, and is no setting of it.
_LINEAGE = "lineage"
# Of an edited image: fields that become arrays, words of its pair, and settings of each edit. Its controls are further
# edits of the pair.
_OF_ARRAYS = ("embedding", "images", "scores")
_OF_PAIR = ("source", "donor")
_OF_EDIT = ("features", "source_cosine", "donor_cosine", "keys", "factors")

U = TypeVar("U", bound=Use)


def check_name(run: str | None) -> None:
    """Raise SettingsError if a result cannot be saved under this name; None saves nothing."""
    if run is not None:
        results.check_run(run)


def refuse_other(
    store: Store,
    kind: type[Use],
    run: str | None,
    scores: FeatureScores,
    made: Mapping[str, Any],
    rows: Mapping[str, Collection[Any]],
    overwrite: bool,
) -> None:
    """Raise StoreError, before the work, if a result of that name was made otherwise or from other scores.

    `made` are fields of the new result, and `rows` the values that fields of its rows will have.
    """
    if run is None or overwrite or not results.sound(store, KIND, run):
        return
    kept = results.load_settings(store, KIND, run)
    refuse_differences(store, KIND, run, kept, {"use": _name_of(kind)})
    with results.as_written(store, KIND, run):
        found = {name: sorted({row[name] for row in kept["rows"]}) for name in rows}
    wanted = {name: sorted(set(values)) for name, values in rows.items()}
    refuse_differences(store, KIND, run, {**kept, **found}, {**made, **wanted})
    sources = {f"{SCORES}/{scores.run}": scores.lineage.checksum} if scores.lineage else {}
    refuse_other_sources(store, KIND, run, sources)


def keep_use(
    store: Store, found: U, scores: FeatureScores, run: str | None, overwrite: bool, on_progress: Listener
) -> U:
    """Return a result with its lineage; save it as `uses/<run>` first if a run is named.

    Raises StoreError if there is a different result of that name and `overwrite` is false, or if the scores are not in
    the store as they were; NotSavedError, which holds the result, if the store cannot be written.
    """
    arrays, settings = _as_run(store, found)
    return save_result(
        *(store, KIND, run or "use", found, arrays, settings, {f"{SCORES}/{scores.run}": scores.lineage}),
        saved=run is not None,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def read_use(store: Store | str | Path, run: str | None = None) -> BiasProbe | AttackStudy | EditStudy | EditedImage:
    """Read a saved result of a use of features from a store; without `run`, the only one.

    Raises StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    store = store if isinstance(store, Store) else Store(store)
    run = results.only_run(store, KIND, run)
    arrays, settings = results.load(store, KIND, run)
    with results.as_written(store, KIND, run):
        common: dict[str, Any] = {each.name: settings[each.name] for each in fields(Use) if each.name != _LINEAGE}
        common |= {"remarks": tuple(common["remarks"]), "lineage": lineage_of(store, KIND, run)}
        if settings["use"] == _EDIT:
            return _edited(store, arrays, settings, common)
        kind, row = _TABLES[settings["use"]]
        own = {each.name: settings[each.name] for each in fields(kind) if each.name not in common}
        rows = tuple(_from_json(row, each) for each in settings["rows"])
        found = kind(**{**own, **common, "rows": rows})
        assert isinstance(found, BiasProbe | AttackStudy | EditStudy), "these are the tables"
        return found


def _name_of(kind: type[Use]) -> str:
    """What the setting `use` says of results of this class."""
    return next((name for name, (each, _) in _TABLES.items() if each is kind), _EDIT)


def _as_run(store: Store, found: Use) -> tuple[dict[str, results.Named], dict[str, Any]]:
    """The arrays and the settings of a result."""
    if not isinstance(found, EditedImage):
        settings = {each.name: as_json(getattr(found, each.name)) for each in fields(found) if each.name != _LINEAGE}
        return {}, {"use": _name_of(type(found)), **settings}
    edits = (found, *found.controls)
    arrays: dict[str, results.Named] = {
        "embeddings": (np.stack([each.embedding for each in edits]), ("edit", "joint")),
        "neighbour_rows": (np.stack([store.rows[each.images] for each in edits]), ("edit", "neighbour")),
        "cosines": (np.stack([each.scores for each in edits]), ("edit", "neighbour")),
    }
    of_edits = [{name: as_json(getattr(each, name)) for name in _OF_EDIT} for each in edits]
    others = (*_OF_ARRAYS, *_OF_EDIT, *_OF_PAIR, "controls", _LINEAGE)
    whole = {each.name: as_json(getattr(found, each.name)) for each in fields(found) if each.name not in others}
    return arrays, {"use": _EDIT, **whole, "pair": {name: getattr(found, name) for name in _OF_PAIR}, "edits": of_edits}


def _edited(
    store: Store, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any], common: Mapping[str, Any]
) -> EditedImage:
    """An edited image with its controls."""
    images = store.images_of_rows(arrays["neighbour_rows"]).astype(np.int64)

    def one(place: int, **changed: Any) -> EditedImage:
        own = settings["edits"][place]
        return EditedImage(
            **{**common, **changed},
            source=settings["pair"]["source"],
            donor=settings["pair"]["donor"],
            features=own["features"],
            embedding=arrays["embeddings"][place],
            source_cosine=number_from_json(own["source_cosine"]),
            donor_cosine=number_from_json(own["donor_cosine"]),
            images=images[place],
            scores=arrays["cosines"][place],
            keys=tuple(own["keys"]),
            factors={str(name): _from_json(FactorShares, each) for name, each in own["factors"].items()},
        )

    controls = tuple(one(place, remarks=(), lineage=None) for place in range(1, len(settings["edits"])))
    return one(0, controls=controls)


def _from_json(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A dataclass of numbers, words, intervals and named numbers, from what `as_json` gave."""
    found: dict[str, Any] = {}
    for each in fields(kind):
        value = values[each.name]
        if each.type == "float":
            value = number_from_json(value)
        elif each.type == "Interval":
            value = Interval(*(number_from_json(value[name]) for name in ("value", "low", "high")))
        elif each.type == "Mapping[str, float]":
            value = numbers_from_json(value)
        found[each.name] = value
    return kind(**found)
