"""One stored array as xarray reads it: values when they are used, for the selected part only. Needs xarray.

It can be pickled, so that other processes can read it; they open the store themselves.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from headspan.store.contents import Contents


class LazyRows(BackendArray):
    """The array `name` of a store at `rows`."""

    def __init__(self, contents: Contents, name: str, rows: np.ndarray) -> None:
        self._path, self._name, self._rows = contents.path, name, rows
        # Set like the cached property, which opens the store again after unpickling.
        self.__dict__["_contents"] = contents
        spec = contents.specs[name]
        self.shape = (len(rows), *spec.shape[1:])
        self.dtype = np.dtype(spec.dtype)

    @cached_property
    def _contents(self) -> Contents:
        return Contents(self._path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_contents"}

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        """Read an outer selection."""
        lengths = self.shape[1:]
        chosen = [self._rows[key[0]], *(np.arange(length)[part] for part, length in zip(key[1:], lengths, strict=True))]
        values = self._contents.outer(self._name, *map(np.atleast_1d, chosen))
        # A single place, unlike a list of one, has no axis.
        return np.asarray(values[tuple(0 if np.ndim(places) == 0 else slice(None) for places in chosen)])
