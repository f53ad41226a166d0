"""The stores that the explorer shows, by their names in addresses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headspan.errors import SettingsError
from headspan.store.reader import Store, open_store

# Bytes of keys, captions and other columns of samples that are kept for each store: those of 2,000,000 images.
_KEPT_SAMPLES = 256 << 20


class OpenStores:
    """Open stores by name; a store that grows is opened again when it shows more images."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self._stores: dict[str, Store] = {}
        for path in paths:
            store = open_store(path)
            store.keep_samples(_KEPT_SAMPLES)
            self._stores[self._free_name(store.path.name.removesuffix(".zarr") or "store")] = store

    @property
    def names(self) -> list[str]:
        """The stores' names, in the order in which they were given."""
        return list(self._stores)

    def get(self, name: str) -> Store:
        """The store of that name as it is now. Raises SettingsError if there is none."""
        if name not in self._stores:
            raise SettingsError(f"there is no store {name!r}; the stores are: {', '.join(self._stores)}")
        return self._stores[name]

    def version(self, name: str) -> str:
        """A text that changes whenever the store shows other images or other results."""
        return f"{self.get(name).images}"

    def _free_name(self, name: str) -> str:
        number, found = 1, name
        while found in self._stores:
            number += 1
            found = f"{name}-{number}"
        return found
