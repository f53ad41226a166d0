"""List the runs that a store holds: kind, name, time, settings, and whether they are damaged or of an older run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.config import as_ranges
from headspan.errors import StoreError, counted
from headspan.frames import Tabular
from headspan.io.remembered import remembered
from headspan.io.storage import Storage
from headspan.store import results
from headspan.store.lineage import older
from headspan.store.reader import Store
from headspan.store.result_files import COMMANDS, made_at
from headspan.store.schema import RECORDS


@dataclass(frozen=True, slots=True)
class KeptRun:
    """One run of a store."""

    kind: str
    name: str
    # When it was saved, as an ISO time in UTC; None if that is not recorded.
    made_at: str | None
    # Its settings in short; empty if they cannot be read.
    settings: str
    # The run that it was made from, if that was replaced or removed since; else None.
    older: str | None
    damaged: bool

    @property
    def state(self) -> str:
        """Whether it is damaged or of an older run, in words; empty if it is neither."""
        return "damaged" if self.damaged else f"of an older {self.older}" if self.older else ""


@dataclass(frozen=True, slots=True, repr=False)
class Runs(Tabular):
    """The runs of a store, in the order in which one is made from another."""

    runs: tuple[KeptRun, ...]

    def __repr__(self) -> str:
        return f"Runs({', '.join(f'{each.kind}/{each.name}' for each in self.runs) or 'none'})"

    def __iter__(self) -> Iterator[KeptRun]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return {
            "kind": [each.kind for each in self.runs],
            "run": [each.name for each in self.runs],
            "made_at": [each.made_at for each in self.runs],
            "settings": [each.settings for each in self.runs],
            "older": [each.older for each in self.runs],
            "damaged": [each.damaged for each in self.runs],
        }


def list_runs(store: Store | str | Path) -> Runs:
    """The runs that analyses have saved in a store. Raises StoreError if there is no store."""
    store = store if isinstance(store, Store) else Store(store)
    storage = remembered(store.contents.storage, folders=[*COMMANDS, f"{RECORDS}/results", f"{RECORDS}/lineage"])
    return Runs(
        tuple(
            KeptRun(
                kind,
                name,
                made_at(storage, kind, name),
                _in_short(store, kind, name, storage),
                older(storage, kind, name),
                not results.sound(store, kind, name, storage=storage),
            )
            for kind in COMMANDS
            for name in results.runs(store, kind, storage)
        )
    )


def _in_short(store: Store, kind: str, run: str, storage: Storage) -> str:
    """The settings of a run in a few words; empty if they cannot be read."""
    with suppress(StoreError), results.as_written(store, kind, run):
        known = results.load_settings(store, kind, run, storage)
        if kind == "texts":
            return counted(len(known["texts"]), "text")
        if kind == "textspan":
            stores = f" of {1 + len(known['also'])} stores" if known.get("also") else ""
            which = f" {known['selection']}" if known.get("selection") else stores
            return (
                f"pool {known['pool']}, {counted(known['texts_per_head'], 'text')} per head, layers "
                f"{as_ranges(known['layers'])}, rank {known['rank']}, {counted(known['images'], 'image')}{which}"
            )
        if kind == "labels":
            return f"labels by {known['source']}"
        if kind == "ccs":
            return f"labels by {known['labels_source']}, votes by {known['source']}"
        if kind == "prune":
            groups, tasks = (", ".join(each["name"] for each in known[name]) for name in ("groups", "tasks"))
            return f"{known['mode']} effect of {groups or 'single heads'} on {tasks}"
        if kind == "features":
            named = f", named from {known['name_pool']}" if known.get("name_pool") else ""
            return f"{known['learner']} over {counted(known['pairs'], 'pair')}{named}"
        if kind == "uses":
            return _use_in_short(known)
        if kind == "descriptions":
            texts, classes = len(known["texts"]), len(known["classes"])
            untrained = "" if known.get("adapter_sha256") else ", untrained"
            judges = ", ".join(known.get("inspection", {}).get("judges", ()))
            inspected = f", inspected by {judges}" if judges else ""
            return f"{counted(texts, 'text')} of {classes:,} classes by {known['model']}{untrained}{inspected}"
        controls = known["answers"].get("controls", {})
        return "against the known scenes" + (f", beside {', '.join(controls)}" if controls else "")
    return ""


def _use_in_short(known: Mapping[str, Any]) -> str:
    """What a use of features did, and by which scores, in a few words."""
    what = {
        "bias": lambda: f"probes of {known['task']} on {counted(known['test_images'], 'image')}",
        "attack": lambda: f"attacks on {known['task']}, {counted(known['images'], 'image')}",
        "edits": lambda: f"edits of {counted(known['pairs'], 'pair')}, donors are {known['donors']}",
        "edit": lambda: _edit_in_short(**known["pair"], features=known["edits"][0]["features"]),
    }
    return f"{what[known['use']]()}, features of {known['scores_run']}"


def _edit_in_short(source: str, donor: str, features: str) -> str:
    return f"{source} with {features} features of {donor}"
