"""The texts that TEXTSPAN chose for every head of a store, and how they are read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from headspan.config import as_ranges
from headspan.errors import SettingsError, StoreError, counted
from headspan.frames import Tabular
from headspan.store import results
from headspan.store.lineage import Lineage, lineage_of
from headspan.store.reader import Store
from headspan.texts.pool import Pool
from headspan.texts.stored import stored_pool


@dataclass(frozen=True, slots=True, repr=False)
class HeadSpans(Tabular):
    """The text span of every described head: texts of a pool, in the order in which TEXTSPAN chose them.

    The arrays' first axis follows `layers`, which are the model's layer numbers; methods take these numbers.
    """

    run: str
    # Identifies the result, so that labels and scores say which one they were made from.
    lineage: Lineage | None = field(default=None, kw_only=True, repr=False, compare=False)
    pool: Pool
    layers: tuple[int, ...]
    # Places in the pool; -1 if no variance was left to explain.
    indices: Int[np.ndarray, "layer head text"]
    # Cumulative share of the variance of the head's contributions, from 0 to 1.
    explained: Float[np.ndarray, "layer head text"]
    # How many images, of how many stores, the texts were chosen over.
    images: int
    stores: int = 1

    def __repr__(self) -> str:
        layers, heads, texts = self.indices.shape
        return (
            f"HeadSpans({self.run!r}: {counted(texts, 'text')} for each of {counted(layers * heads, 'head')}, layers "
            f"{as_ranges(self.layers)}, over {counted(self.images, 'image')})"
        )

    def texts(self, layer: int, head: int, count: int | None = None) -> list[str]:
        """The first `count` texts of one head, or all. Raises SettingsError if the head is not described."""
        return [self.pool.texts[index] for index in self.places(layer, head, count)]

    def places(self, layer: int, head: int, count: int | None = None) -> list[int]:
        """The places in the pool of the first `count` texts of one head, or of all; errors as in `texts`."""
        return [index for index in self.indices[self._at(layer, head)][:count].tolist() if index >= 0]

    def explained_by(self, layer: int, head: int, count: int | None = None) -> float:
        """Share of the variance of one head's contributions that its first `count` texts explain, or all."""
        return float(self.explained[self._at(layer, head)][:count][-1])

    def heads(self) -> Iterator[tuple[int, int]]:
        """Layer and head of every described head, in order."""
        for layer in self.layers:
            for head in range(self.indices.shape[1]):
                yield layer, head

    def _at(self, layer: int, head: int) -> tuple[int, int]:
        return place_of(self.layers, self.indices.shape[1], layer, head)

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        rows = [
            (layer, head, number, index)
            for layer, head in self.heads()
            for number, index in enumerate(self.places(layer, head), start=1)
        ]
        concepts = self.pool.concepts
        return {
            "layer": [layer for layer, *_ in rows],
            "head": [head for _, head, *_ in rows],
            "number": [number for *_, number, _ in rows],
            "text": [self.pool.texts[index] for *_, index in rows],
            **({} if concepts is None else {"concept": [concepts[index] for *_, index in rows]}),
            "explained": [self.explained_by(layer, head, number) for layer, head, number, _ in rows],
        }

    def _shown_columns(self) -> Mapping[str, Sequence[Any]]:
        heads = list(self.heads())
        return {
            "head": [f"L{layer}.H{head}" for layer, head in heads],
            "first texts": ["; ".join(self.texts(*head, 3)) or None for head in heads],
            "explained": [self.explained_by(*head) for head in heads],
        }


def place_of(layers: Sequence[int], heads: int, layer: int, head: int) -> tuple[int, int]:
    """The place of a head in arrays whose axes are `layers` and heads. Raises SettingsError if it is not in them."""
    if layer not in layers or not 0 <= head < heads:
        raise SettingsError(
            f"layer {layer}, head {head}: not in this result; it has layers {as_ranges(layers)} with heads 0 to "
            f"{heads - 1}"
        )
    return layers.index(layer), head


def read_spans(store: Store, run: str | None = None) -> HeadSpans:
    """Read the result of a TEXTSPAN run from a store; without `run`, of the only one.

    Raises StoreError if the run is missing or damaged, or if there are several and none is named.
    """
    run = results.only_run(store, "textspan", run)
    arrays, settings = results.load(store, "textspan", run)
    with results.as_written(store, "textspan", run):
        pool_name, checksum = str(settings["pool"]), str(settings["pool_sha256"])
        layers, images = tuple(map(int, settings["layers"])), int(settings["images"])
        # Early runs are over one store and do not record others.
        stores = 1 + len(settings.get("also", ()))
        indices, explained = arrays["indices"], arrays["explained"]
    pool = stored_pool(store, pool_name)
    if pool.sha256 != checksum:
        raise StoreError(
            f"{store.path}: the pool {pool.name} has changed since textspan run {run!r}; run headspan textspan again"
        )
    lineage = lineage_of(store, "textspan", run)
    return HeadSpans(run, pool, layers, indices, explained, images, stores, lineage=lineage)
