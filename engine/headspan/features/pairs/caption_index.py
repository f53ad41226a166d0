"""Which captions the images of a store have, as numbers of its distinct captions, without their texts in memory.

Captions count in the order in which they first appear. They are told apart by checksums of 128 bits, so an index takes
some 40 bytes a caption; texts are read from the store's tables when they are asked for.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from headspan.store.opened import OpenStore
from headspan.store.tables import filled_columns, read_rows, scan_samples
from headspan.tasks.captioned import caption_lines

_COLUMNS = ("caption", "metadata")
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, eq=False)
class CaptionIndex:
    """The captions of every planned row of a store."""

    # The captions of row r are `numbers[first[r]:first[r + 1]]`.
    first: Int64[np.ndarray, " row_and_end"]
    numbers: Int64[np.ndarray, " given"]
    # Where each distinct caption appears first: its place in `numbers`.
    places: Int64[np.ndarray, " caption"]
    # A checksum of all distinct captions in their order.
    sha256: str

    def __len__(self) -> int:
        """The number of distinct captions."""
        return len(self.places)

    def counts(self, rows: Int64[np.ndarray, " row"]) -> Int64[np.ndarray, " row"]:
        """How many captions each row has."""
        return np.asarray(self.first[rows + 1] - self.first[rows])

    def texts(self, store: OpenStore, captions: Sequence[int] | Int64[np.ndarray, " caption"]) -> list[str]:
        """The texts of captions, given by their numbers."""
        places = self.places[np.asarray(captions, np.int64)]
        rows = np.searchsorted(self.first, places, side="right") - 1
        table = read_rows(store.contents.storage, rows, store.contents.size.unit_images, _COLUMNS)
        lines = zip(table["caption"].to_pylist(), table["metadata"].to_pylist(), strict=True)
        within = (places - self.first[rows]).tolist()
        return [caption_lines(*given)[line] for given, line in zip(lines, within, strict=True)]

    def batches(self, store: OpenStore, begin: int, size: int) -> Iterator[list[str]]:
        """The texts of all captions from number `begin` on, `size` at a time, in one pass over the store's tables."""
        wanted, place, batch = iter(self.places[begin:].tolist()), 0, list[str]()
        following = next(wanted, None)
        for lines in _lines(store):
            while following is not None and following < place + len(lines):
                batch.append(lines[following - place])
                following = next(wanted, None)
                if len(batch) == size:
                    yield batch
                    batch = []
            place += len(lines)
            if following is None:
                break
        if batch:
            yield batch


def index_captions(store: OpenStore) -> CaptionIndex:
    """Read which captions each row of the store's plan has. Raises StoreError if its tables are damaged."""
    counts, digests = array("q"), bytearray()
    if filled_columns(store.contents.storage, store.contents.units) & set(_COLUMNS):
        for lines in _lines(store):
            counts.append(len(lines))
            for line in lines:
                digests += hashlib.blake2b(line.encode(), digest_size=_DIGEST_BYTES).digest()
    else:
        counts.extend([0] * store.planned_images)
    first = np.concatenate([[0], np.cumsum(np.frombuffer(counts, np.int64))]).astype(np.int64)
    halves = np.frombuffer(digests, np.uint64).reshape(-1, 2)
    if not len(halves):
        return CaptionIndex(first, np.empty(0, np.int64), np.empty(0, np.int64), hashlib.sha256().hexdigest())
    # Stable, so that the first of equal captions is the one that appears first.
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    begins = np.concatenate([[True], (np.diff(halves[order].view(np.int64), axis=0) != 0).any(axis=1)])
    appears = order[begins]
    by_appearance = np.argsort(appears)
    number_of_group = np.empty(len(appears), np.int64)
    number_of_group[by_appearance] = np.arange(len(appears))
    numbers = np.empty(len(halves), np.int64)
    numbers[order] = number_of_group[np.cumsum(begins) - 1]
    places = appears[by_appearance]
    return CaptionIndex(first, numbers, places, hashlib.sha256(halves[places].tobytes()).hexdigest())


def _lines(store: OpenStore) -> Iterator[tuple[str, ...]]:
    """The captions of every planned row, in order."""
    for batch in scan_samples(store.contents.storage, store.contents.units, _COLUMNS):
        for given in zip(batch["caption"].to_pylist(), batch["metadata"].to_pylist(), strict=True):
            yield caption_lines(*given)
