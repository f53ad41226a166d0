"""The classes of a store's images: their numbers, how many images each has, and their names where they are known.

A class is the number of a `.cls` member or of a column. Its name is the text `class_name` in the metadata of the
images of the class, where headspan puts the names that Parquet files and lists give.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int32, Int64, UInt32

from headspan.store.reader import Store
from headspan.store.tables import scan_samples
from headspan.tasks.truths import CLASS_NAME
from headspan.web.samples.database import SAMPLES, samples_of
from headspan.web.samples.metadata import class_name, metadata_of

_NAMES = f"""
    SELECT label, any_value(metadata) AS metadata FROM {SAMPLES}
    WHERE label IS NOT NULL AND contains(metadata, '"{CLASS_NAME}"') GROUP BY label
"""
# Numbers of classes in so wide a range are counted rather than sorted.
_COUNTED = 1 << 20


@dataclass(frozen=True, eq=False)
class Classes:
    """The classes of the images that a store shows."""

    # Ascending, and the number of images of each.
    numbers: Int64[np.ndarray, " class"]
    counts: Int64[np.ndarray, " class"]
    # The place among `numbers` of each image's class; -1 without a class.
    places: Int32[np.ndarray, " image"]
    # As far as they are known.
    names: dict[int, str]

    def name(self, number: int | None) -> str | None:
        """The name of a class; None if it is not known."""
        return None if number is None else self.names.get(number)

    def shown(self, place: int) -> str:
        """The name of the class at a place among `numbers`, or its number."""
        number = int(self.numbers[place])
        return self.names.get(number, f"{number}")

    @property
    def bytes(self) -> int:
        """The memory that they take, roughly, with that of `images`."""
        return 2 * self.places.nbytes + 200 * len(self.numbers)

    def images(self, place: int) -> UInt32[np.ndarray, " some"]:
        """The indices of the images of the class at a place among `numbers`, ascending."""
        order, starts = self._by_class
        return order[starts[place] : starts[place + 1]]

    @cached_property
    def _by_class(self) -> tuple[UInt32[np.ndarray, " image"], Int64[np.ndarray, " bound"]]:
        """All images in the order of their classes, those without a class first, and where each class begins."""
        order = np.argsort(self.places.astype(np.min_scalar_type(-len(self.numbers) - 1)), kind="stable")
        first = len(self.places) - int(self.counts.sum())
        return order.astype(np.uint32), first + np.concatenate([[0], np.cumsum(self.counts)])


def read_classes(store: Store, has_metadata: bool = True) -> Classes:
    """Read the class of every image that the store shows. Without metadata, classes have no names."""
    labels, present = np.zeros(store.planned_images, np.int64), np.zeros(store.planned_images, bool)
    first = 0
    for batch in scan_samples(store.contents.storage, store.contents.units, ["label"]):
        here = slice(first, first + len(batch))
        present[here], labels[here] = _present_and_labels(batch.column(0))
        first = here.stop
    labels, present = labels[store.rows], present[store.rows]
    places = np.full(store.images, -1, np.int32)
    numbers, found, counts = _distinct(labels if present.all() else labels[present])
    places[present] = found
    return Classes(numbers, counts, places, _names(store) if len(numbers) and has_metadata else {})


def _present_and_labels(column: pa.Array) -> tuple[Bool[np.ndarray, " row"], Int64[np.ndarray, " row"]]:
    """Which labels are there, and all of them, with any number for one that is missing.

    They are read from the column's memory: its own `to_numpy` imports pandas, which takes half a second.
    """
    validity, values = column.buffers()
    here = slice(column.offset, column.offset + len(column))
    if validity is None:
        return np.ones(len(column), bool), np.frombuffer(values, np.int64)[here]
    present = np.unpackbits(np.frombuffer(validity, np.uint8), bitorder="little")[here].astype(bool)
    return present, np.frombuffer(values, np.int64)[here]


def _distinct(
    labels: Int64[np.ndarray, " image"],
) -> tuple[Int64[np.ndarray, " class"], Int32[np.ndarray, " image"], Int64[np.ndarray, " class"]]:
    """The distinct numbers, the place of each label among them, and how often each is there; as `np.unique` finds them.

    Numbers that lie close together are counted, which takes a tenth of the time of sorting them.
    """
    least = int(labels.min(initial=np.iinfo(np.int64).max))
    if not len(labels) or int(labels.max()) - least >= _COUNTED:
        numbers, found, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return numbers, found.astype(np.int32), counts
    counts = np.bincount(labels - least)
    numbers = np.flatnonzero(counts)
    place = np.empty(len(counts), np.int32)
    place[numbers] = np.arange(len(numbers), dtype=np.int32)
    return numbers + least, place[labels - least], counts[numbers]


def _names(store: Store) -> dict[int, str]:
    found = samples_of(store).rows(_NAMES)
    names = {}
    for label, metadata in zip(found["label"].tolist(), found["metadata"].tolist(), strict=True):
        name = class_name(metadata_of(metadata))
        if name is not None:
            names[int(label)] = name
    return dict(sorted(names.items()))
