"""Give a new store in a bucket its plan, as units are committed: stage the files, claim the store, publish the files.

Only one planner can claim the store. The root's metadata are published last and make it a store, so that it exists
completely or not at all. Any process that finds a claim finishes or removes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from headspan.errors import StoreError, one_line
from headspan.io.storage import Storage, parts_of
from headspan.store.consolidated import ROOT
from headspan.store.schema import RECORDS

CLAIM = f"{RECORDS}/plan.claim"
# Files of the plan that are sent or copied at the same time: each takes some requests, and most are small.
_AT_ONCE = 8


def publish_plan(storage: Storage, plan: Storage, keys: Iterable[str]) -> bool:
    """Copy the files `keys` of `plan` to `storage`. Returns False if another process has created that store.

    Raises StoreError if they cannot be written; then nothing is left of them but what a later process removes.
    """
    names = sorted(set(keys) - {ROOT})
    sizes: dict[str, int] = {}

    def stage(key: str) -> None:
        with storage.stage(key) as staged:
            for part in parts_of(plan, key):
                staged.write(part)
            sizes[key], _ = staged.finish()

    try:
        _each([*names, ROOT], stage)
        # The root is published last.
        claim = {"token": storage.token, "sizes": {key: sizes[key] for key in (*names, ROOT)}}
        mine = storage.put_if_absent(CLAIM, json.dumps(claim).encode())
    except BaseException:
        # If it was interrupted after its claim, the store can be created.
        if not settle_plan(storage):
            _discard(storage, sizes, storage.token)
        raise
    # A planner that has created the store has deleted its claim, so this claim succeeds. The store stays as it is.
    mine = mine and not _exists(storage)
    if not mine:
        _discard(storage, sizes, storage.token)
    if not settle_plan(storage):
        raise StoreError(
            f"{storage}: the staged files of the plan were deleted while they were written; run the same command again"
        )
    return mine


def settle_plan(storage: Storage) -> bool:
    """Publish the files of a plan that was claimed, the root's metadata last. Returns whether the store exists.

    Several processes may do this at the same time. The claim is deleted. If the store existed before, or a staged file
    is lost, the staged files are deleted instead of published.
    """
    try:
        claimed = json.loads(storage.get(CLAIM))
        token, sizes = claimed["token"], claimed["sizes"]
    except FileNotFoundError:
        return _exists(storage)
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{storage}/{CLAIM}: this claim is damaged ({one_line(error)}); delete it to continue"
        ) from error

    def published(key: str) -> bool:
        return storage.publish(key, token) or storage.size(key) == sizes[key]

    if _exists(storage):
        _discard(storage, sizes, token)
    elif all(_each([key for key in sizes if key != ROOT], published)):
        published(ROOT)
    elif not _exists(storage):
        _discard(storage, sizes, token)
        # What was published of it, so that another planner finds an empty place.
        _each([key for key in sizes if key != ROOT], storage.delete)
    storage.delete(CLAIM)
    return _exists(storage)


def _exists(storage: Storage) -> bool:
    return storage.size(ROOT) is not None


def _discard(storage: Storage, keys: Iterable[str], token: str) -> None:
    _each(list(keys), lambda key: storage.discard(key, token))


def _each(keys: list[str], work: Callable[[str], object]) -> list[object]:
    """Do `work` for each key, several at a time. Raises what the first of them raises, when all have ended."""
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(work, keys))
