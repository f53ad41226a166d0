"""Descriptions as a store holds them, as the run `descriptions/<run>`: saving them, and reading them without torch.

Descriptions that gain an inspection stay the same run, since the inspection only adds arrays and settings.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from headspan.describe.descriptions.result import Descriptions
from headspan.describe.descriptions.saved_inspection import inspection_arrays, inspection_settings, read_inspection
from headspan.describe.rewards.target import Target
from headspan.events import NOTE, Listener, Progress, ignore
from headspan.store import results
from headspan.store.lineage import lineage_of
from headspan.store.reader import Store
from headspan.store.result_values import arrays_of, json_number, json_numbers, number_from_json, numbers_from_json
from headspan.store.write.analyses import has_content
from headspan.store.write.save_result import save_result

KIND = "descriptions"
_WORDS = ("model", "classes_from")
_LISTS = ("classes", "questions", "texts")


def save_descriptions(
    store: Store, descriptions: Descriptions, overwrite: bool = False, on_progress: Listener = ignore
) -> Descriptions:
    """Save descriptions as `descriptions/<descriptions.run>`; returns them with their lineage.

    The inspection of the same descriptions is kept. That of others, which are replaced, goes with them, and
    `on_progress` receives a remark.

    Raises StoreError if there is a run of that name with other content, such as another inspection, and `overwrite` is
    false; NotSavedError, which holds the descriptions, if the store cannot be written.
    """
    results.check_run(descriptions.run)
    descriptions = _with_inspection(store, descriptions, overwrite, on_progress)
    return save_result(
        *(store, KIND, descriptions.run, descriptions, _arrays(descriptions), _settings(descriptions)),
        overwrite=overwrite,
        on_progress=on_progress,
    )


def _with_inspection(store: Store, descriptions: Descriptions, overwrite: bool, on_progress: Listener) -> Descriptions:
    """Descriptions without an inspection with that of the run of their name, if it holds the same descriptions."""
    run = descriptions.run
    if descriptions.inspection is not None or not results.sound(store, KIND, run):
        return descriptions
    inspected = replace(descriptions, inspection=read_descriptions(store, run).inspection)
    if inspected.inspection is None or has_content(store, KIND, run, _arrays(inspected), _settings(inspected), {}):
        return inspected
    if overwrite:
        note = f"the inspection of the earlier {KIND}/{run} goes with it; run headspan describe inspect again"
        on_progress(Progress(NOTE, 1, 1, note))
    return descriptions


def read_descriptions(store: Store | str | Path, run: str | None = None) -> Descriptions:
    """Read descriptions from a store; without `run`, of the only run.

    Raises StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    store = store if isinstance(store, Store) else Store(store)
    run = results.only_run(store, KIND, run)
    arrays, settings = results.load(store, KIND, run)
    with results.as_written(store, KIND, run):
        known = {each.name for each in fields(Descriptions)}
        found: dict[str, Any] = {name: values for name, values in arrays.items() if name in known}
        found |= {name: _word(settings[name]) for name in _WORDS}
        found |= {name: tuple(_word(each) for each in _listed(settings[name])) for name in _LISTS}
        adapter = settings["adapter_sha256"]
        descriptions = Descriptions(
            run=run,
            adapter_sha256=None if adapter is None else _word(adapter),
            target=Target.from_json(settings["target"]),
            quality=numbers_from_json(settings.get("quality", {})),
            best_of=int(settings.get("best_of", 0)),
            best_texts=tuple(_word(each) for each in _listed(settings.get("best_texts", []))),
            training=dict(settings.get("training", {})),
            log={
                str(name): tuple(number_from_json(value) for value in _listed(values))
                for name, values in settings.get("log", {}).items()
            },
            inspection=read_inspection(arrays, settings, f"{store.path}/{KIND}/{run}"),
            seed=int(settings["seed"]),
            lineage=lineage_of(store, KIND, run),
            **found,
        )
        _check_lengths(descriptions)
        return descriptions


def _arrays(descriptions: Descriptions) -> dict[str, results.Named]:
    found = arrays_of(descriptions)
    if descriptions.inspection is not None:
        found |= inspection_arrays(descriptions.inspection)
    return found


def _settings(descriptions: Descriptions) -> dict[str, Any]:
    found: dict[str, Any] = {
        **{name: getattr(descriptions, name) for name in (*_WORDS, *_LISTS, "adapter_sha256", "seed")},
        "target": descriptions.target.as_json(),
        "quality": json_numbers(descriptions.quality),
        "training": dict(descriptions.training),
        "log": {name: [json_number(value) for value in values] for name, values in descriptions.log.items()},
    }
    if descriptions.best_of:
        # Runs of earlier versions have none.
        found |= {"best_of": descriptions.best_of, "best_texts": list(descriptions.best_texts)}
    if descriptions.inspection is not None:
        found |= inspection_settings(descriptions.inspection)
    return found


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value


def _check_lengths(descriptions: Descriptions) -> None:
    """Raise ValueError if there are not as many texts as numbers of each kind, or a class or question is unknown."""
    count, inspection = len(descriptions.texts), descriptions.inspection
    lengths = {
        name: values.shape[-1] for name, (values, axes) in _arrays(descriptions).items() if axes[-1] == "description"
    }
    if inspection is not None:
        lengths["attributes"] = len(inspection.attributes)
        lengths |= {
            f"attributes by {judge}": len(names)
            for judge, names in zip(inspection.judges, inspection.named, strict=False)
        }
        if inspection.named and len(inspection.named) != len(inspection.votes):
            raise ValueError(f"attributes by {len(inspection.named)} judges, but votes of {len(inspection.votes)}")
        if len(inspection.judges) != len(inspection.votes):
            raise ValueError(f"votes of {len(inspection.votes)} judges, but {len(inspection.judges)} names")
    if other := [name for name, length in lengths.items() if length != count]:
        raise ValueError(f"{lengths[other[0]]} {other[0]} of {count} texts")
    if descriptions.best_of:
        prompts, best = len(descriptions.classes) * len(descriptions.questions), descriptions.best_rewards
        if {prompts} != {len(descriptions.best_texts), 0 if best is None else len(best)}:
            raise ValueError(f"{len(descriptions.best_texts)} best texts of {prompts} prompts")
    rows = descriptions.class_rows
    if rows is not None and (rows.ndim != 2 or len(rows) != len(descriptions.classes)):
        raise ValueError(f"rows of images as {rows.shape}, but {len(descriptions.classes)} classes")
    for name, numbers, names in (
        ("class", descriptions.class_of, descriptions.classes),
        ("question", descriptions.question_of, descriptions.questions),
    ):
        if count and not (numbers.min() >= 0 and numbers.max() < len(names)):
            raise ValueError(f"a {name} beyond the {len(names)} that are named")
