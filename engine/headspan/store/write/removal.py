"""Remove runs from a store by name. Runs that were made from them stay, marked as of an older run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from headspan.errors import StoreError
from headspan.store import results
from headspan.store.reader import Store
from headspan.store.result_files import COMMANDS, record_key
from headspan.store.write.analyses import remove

# In this order a run is removed before the runs that it was made from.
_ORDER = ("descriptions", "uses", "features", "prune", "truth", "ccs", "labels", "textspan", "texts")


@dataclass(frozen=True, slots=True)
class Removed:
    """What was removed, and which runs now count as of an older run, each as `<kind>/<run>`."""

    removed: tuple[str, ...]
    marked: tuple[str, ...]


def remove_runs(store: Store | str | Path, names: str | Sequence[str]) -> Removed:
    """Delete runs: those of any kind with a name, or one as `<kind>/<run>`, as in `labels/general`.

    The texts of a pool are deleted with the runs of that name unless another TEXTSPAN run was made from them. Runs made
    from a deleted run stay. Raises StoreError, before anything is deleted, if the store has no such run, or if texts
    are named that a remaining run needs; and StoreError if the store cannot be written.
    """
    store = store if isinstance(store, Store) else Store(store)
    names = [names] if isinstance(names, str) else list(names)
    wanted = {each for name in names for each in _named(store, name)}
    needed = {run: pool for run in results.runs(store, "textspan") if (pool := _pool_of(store, run)) is not None}
    for pool in sorted(set(needed.values())):
        users = [f"textspan/{run}" for run, of in needed.items() if of == pool and f"textspan/{run}" not in wanted]
        if f"texts/{pool}" in wanted and users:
            if f"texts/{pool}" in names:
                what, verbs = ", ".join(users), ("was", "needs") if len(users) == 1 else ("were", "need")
                raise StoreError(
                    f"{store.path}: {what} {verbs[0]} made from texts/{pool} and {verbs[1]} them; remove {what} too"
                )
            wanted.discard(f"texts/{pool}")
    removed: list[str] = []
    marked: list[str] = []
    for kind in _ORDER:
        for each in sorted(name for name in wanted if name.startswith(f"{kind}/")):
            marked += remove(store, kind, each.partition("/")[2])
            removed.append(each)
    return Removed(tuple(removed), tuple(each for each in dict.fromkeys(marked) if each not in removed))


def _named(store: Store, name: str) -> list[str]:
    """The runs that `name` means. Raises StoreError if there is none."""
    kind, slash, run = name.partition("/")
    kinds = [kind] if slash else list(COMMANDS)
    run = run if slash else name
    if not set(kinds) <= set(COMMANDS):
        raise StoreError(f"{store.path}: {name}: there are no {kind} runs; name a run as in labels/general")
    results.check_run(run)
    found = [f"{each}/{run}" for each in kinds if _exists(store, each, run)]
    if not found:
        there = sorted({f"{each}/{other}" for each in kinds for other in results.runs(store, each)})
        raise StoreError(f"{store.path}: has no run {name} (has {', '.join(there) or 'none'})")
    return found


def _exists(store: Store, kind: str, run: str) -> bool:
    """Whether there is a run, or at least the record of one whose files are missing."""
    return run in results.runs(store, kind) or store.contents.storage.size(record_key(kind, run)) is not None


def _pool_of(store: Store, run: str) -> str | None:
    """The pool in the store that a TEXTSPAN run was made from; None if its settings cannot be read."""
    try:
        with results.as_written(store, "textspan", run):
            return str(results.load_settings(store, "textspan", run)["pool"])
    except StoreError:
        return None
