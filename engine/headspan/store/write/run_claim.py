"""Let one process at a time write a run of a name in a bucket, where no folder is renamed in one step.

The claim is an object beside the run's record, which only one process can put. That of a killed process counts for ten
minutes. On a local disk a rename decides instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from headspan.errors import StoreError
from headspan.io.files import new_token
from headspan.io.local import LocalStorage
from headspan.io.storage import Storage
from headspan.store.result_files import record_key

# Results are written in seconds. Whoever is slower may be disturbed by another process.
CLAIMED_SECONDS = 600.0


@contextmanager
def claimed(storage: Storage, kind: str, run: str) -> Iterator[None]:
    """Claim a run for the block. Raises StoreError if another process has claimed it, or if it cannot be written."""
    if isinstance(storage, LocalStorage):
        yield
        return
    key = _claim(storage, kind, run)
    try:
        yield
    finally:
        with suppress(StoreError):
            storage.delete(key)


def _claim(storage: Storage, kind: str, run: str) -> str:
    """Put a claim, and return its key."""
    stem = f"{record_key(kind, run).removesuffix('.json')}.claim-"
    old = _claims(storage, stem)
    _refuse_claimed(storage, kind, run, old)
    # Only one of those who find the same claims of killed processes puts the next one.
    key = f"{stem}{max(old.values(), default=-1) + 1}"
    # Each claim is its own, since threads of one process share the storage's token.
    if not storage.put_if_absent(key, new_token().encode()):
        raise _refusal(storage, kind, run, 0.0)
    try:
        # Another process may have found older claims, and have put another one.
        _refuse_claimed(storage, kind, run, [each for each in _claims(storage, stem) if each != key])
    except BaseException:
        storage.delete(key)
        raise
    for each in old:
        storage.delete(each)
    return key


def _claims(storage: Storage, stem: str) -> dict[str, int]:
    """Return the keys of claims of a run, and their numbers."""
    keys = storage.list(stem.rpartition("/")[0])
    return {key: int(found[1]) for key in keys if (found := re.fullmatch(rf"{re.escape(stem)}(\d+)", key))}


def _refuse_claimed(storage: Storage, kind: str, run: str, claims: Iterable[str]) -> None:
    for key in claims:
        put = storage.modified(key)
        if put is not None and (age := storage.now() - put) < CLAIMED_SECONDS:
            raise _refusal(storage, kind, run, age)


def _refusal(storage: Storage, kind: str, run: str, age: float) -> StoreError:
    left = max(1, round((CLAIMED_SECONDS - age) / 60))
    return StoreError(
        f"{storage}/{kind}/{run}: another process is writing this run; run one command at a time, or, if that process "
        f"was killed, run this one again in {left} min"
    )
