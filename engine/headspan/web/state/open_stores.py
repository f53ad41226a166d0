"""The stores that the explorer shows, by their names in addresses.

A store may grow, or get results, while it is shown. At most once a second, or every ten seconds for a store in a
bucket, a request compares its records with those that were there before, and opens the store again if they differ.
Requests that began with the earlier Store object keep it until they end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from headspan.errors import SettingsError, StoreError
from headspan.io.locations import Location, location_of
from headspan.io.stores import storage_at
from headspan.store.reader import Store
from headspan.store.tables import filled_columns
from headspan.web.refusals import Missing
from headspan.web.state.kept_on_disk import opened_with_cache
from headspan.web.state.store_version import state_of, version_of

_CHECK_SECONDS = 1.0
# The records of a store in a bucket are read by two requests or more.
_CHECK_BUCKET_SECONDS = 10.0
# Bytes of keys, captions and other columns of samples that are kept for each store: those of 2,000,000 images.
_KEPT_SAMPLES = 256 << 20


@dataclass
class _Opened:
    """A store as it was when it was last opened."""

    path: Location
    store: Store
    # What is compared with the files, and what is told to pages.
    state: str
    version: str
    # Columns of the plan, which does not change.
    filled: frozenset[str]
    # Why the store cannot be opened any longer.
    problem: StoreError | None = None
    checked: float = field(default_factory=time.monotonic)
    checking: threading.Lock = field(default_factory=threading.Lock)

    @property
    def is_due(self) -> bool:
        """Whether it is time to compare the store's files again."""
        seconds = _CHECK_SECONDS if isinstance(self.path, Path) else _CHECK_BUCKET_SECONDS
        return time.monotonic() - self.checked > seconds


class OpenStores:
    """Open stores by name. Threads may share it."""

    def __init__(self, paths: Sequence[str | Path], cache_bytes: int = 0) -> None:
        """Open the stores at `paths`; of those in buckets, at most `cache_bytes` are kept on disk.

        Raises StoreError if one of them is none, SettingsError if one is named twice."""
        self._opened: dict[str, _Opened] = {}
        self._cache_bytes = cache_bytes
        for path in paths:
            state = state_of(location_of(path, StoreError))
            store = self._open(path)
            if any(_same(store.path, each.path) for each in self._opened.values()):
                raise SettingsError(f"{path}: is named twice; name every store once")
            name = self._free_name(store.path.absolute().name.removesuffix(".zarr") or "store")
            filled = filled_columns(store.contents.storage, store.contents.units)
            self._opened[name] = _Opened(store.path, store, state, version_of(store, state), filled)

    @property
    def names(self) -> list[str]:
        """The stores' names, in the order in which they were given."""
        return list(self._opened)

    def get(self, name: str) -> Store:
        """The store of that name as it is now. Raises Missing if there is none, or if it is no longer there."""
        opened = self._current(name)
        if opened.problem is not None:
            raise Missing(str(opened.problem))
        return opened.store

    def looked_at(self, name: str) -> bool:
        """Whether `get` answers at once, without a look at the store's files."""
        return name in self._opened and not self._opened[name].is_due

    def last(self, name: str) -> Store:
        """The store of that name as it was when it could last be opened."""
        return self._current(name).store

    def version(self, name: str) -> str:
        """A text that changes whenever the store shows other images or other results."""
        return self._current(name).version

    def filled_columns(self, name: str) -> frozenset[str]:
        """The columns of the store's samples in which at least one sample has a value."""
        return self._current(name).filled

    def problem(self, name: str) -> str | None:
        """Why the store can no longer be read; None if it can be."""
        problem = self._current(name).problem
        return None if problem is None else str(problem)

    def _current(self, name: str) -> _Opened:
        if name not in self._opened:
            raise Missing(f"there is no store {name[:100]!r} here; the stores are: {', '.join(self._opened)}")
        opened = self._opened[name]
        # One request looks; others meanwhile get what is known.
        if opened.is_due and opened.checking.acquire(blocking=False):
            try:
                self._check(opened)
            finally:
                opened.checked = time.monotonic()
                opened.checking.release()
        return opened

    def _check(self, opened: _Opened) -> None:
        # The state is read first: what is written while the store is opened is found by the next check.
        state = state_of(opened.path)
        if state == opened.state and opened.problem is None:
            return
        try:
            store = self._open(opened.path)
        except StoreError as error:
            if storage_at(opened.path).size("zarr.json") is not None:
                # A unit is being committed or repaired; the store is opened again by the next check.
                return
            opened.problem = StoreError(
                f"{opened.path}: the store is no longer there ({error}); restore it, or start the explorer without it"
            )
            return
        opened.store, opened.state, opened.version = store, state, version_of(store, state)
        opened.problem = None

    def _open(self, path: str | Path) -> Store:
        store = opened_with_cache(path, self._cache_bytes)
        store.keep_samples(_KEPT_SAMPLES)
        return store

    def _free_name(self, name: str) -> str:
        number, found = 1, name
        while found in self._opened:
            number += 1
            found = f"{name}-{number}"
        return found


def _same(one: Location, other: Location) -> bool:
    """Whether two locations are one store."""
    return one.samefile(other) if isinstance(one, Path) and isinstance(other, Path) else one == other
