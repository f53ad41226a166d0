"""Refuse a run's name that a different run has, before the work that makes a new one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from headspan.store.lineage import sources_of
from headspan.store.opened import OpenStore
from headspan.store.result_values import as_json
from headspan.store.results import load_settings, refusal, sound


def refuse_made_differently(
    store: OpenStore,
    kind: str,
    run: str | None,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    words: Mapping[str, str] | None = None,
    replaced: str | None = None,
) -> None:
    """Raise StoreError if there is a run of that name, and one of these settings of it is another.

    `settings` are some of the new run's, which are known before its numbers are; `words` says what they are called, and
    `replaced` is as in `results.refusal`. Saving compares everything, so this check may miss a difference. A `run` of
    None, or `overwrite`, refuses nothing.
    """
    if run is None or overwrite or not sound(store, kind, run):
        return
    refuse_differences(store, kind, run, load_settings(store, kind, run), settings, words, replaced)


def refuse_differences(
    store: OpenStore,
    kind: str,
    run: str,
    kept: Mapping[str, Any],
    settings: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
    replaced: str | None = None,
) -> None:
    """Raise StoreError if one of these settings is another in `kept`, what the run holds. Others are not compared."""
    different = [name for name, value in settings.items() if name in kept and _text(kept[name]) != _text(value)]
    if different:
        called = {name: name.replace("_", " ") for name in different} | dict(words or {})
        now = ", ".join(
            f"{called[name]} {_short(kept[name])}, now {_short(settings[name])}"
            if isinstance(settings[name], int | float | str)
            and isinstance(kept[name], int | float | str)
            and not name.endswith("sha256")
            else f"other {called[name]}"
            for name in different
        )
        raise refusal(store, kind, run, f"{kind} run {run!r} was made differently ({now})", replaced)


def refuse_other_sources(store: OpenStore, kind: str, run: str, sources: Mapping[str, str]) -> None:
    """Raise StoreError if a run, which is sound, was made from other runs than `sources`, by their checksums."""
    kept = sources_of(store.contents.storage, kind, run)
    for source, checksum in kept.items():
        if sources.get(source) != checksum:
            raise refusal(store, kind, run, f"{kind} run {run!r} was made from another {source}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return json.dumps(as_json(value), sort_keys=True)
