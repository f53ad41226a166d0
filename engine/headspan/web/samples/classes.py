"""The classes of a store's images: their numbers, how many images each has, and their names where they are known.

A class is the number of a `.cls` member or of a column. Its name is the text `class_name` in the metadata of the
images of the class, where headspan puts the names that Parquet files and lists give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64

from headspan.store.reader import Store
from headspan.store.tables import scan_samples
from headspan.tasks.truths import CLASS_NAME
from headspan.web.samples.database import SAMPLES, samples_of
from headspan.web.samples.metadata import class_name, metadata_of

_NAMES = f"""
    SELECT label, any_value(metadata) AS metadata FROM {SAMPLES}
    WHERE label IS NOT NULL AND contains(metadata, '"{CLASS_NAME}"') GROUP BY label
"""


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
        """The memory that they take, roughly."""
        return self.places.nbytes + 200 * len(self.numbers)


def read_classes(store: Store) -> Classes:
    """Read the class of every image that the store shows."""
    labels, present = np.zeros(store.planned_images, np.int64), np.zeros(store.planned_images, bool)
    first = 0
    for batch in scan_samples(store.contents.storage, store.contents.units, ["label"]):
        column, here = batch.column(0), slice(first, first + len(batch))
        present[here] = column.is_valid().to_numpy(zero_copy_only=False)
        labels[here] = column.fill_null(0).to_numpy()
        first = here.stop
    labels, present = labels[store.rows], present[store.rows]
    places = np.full(store.images, -1, np.int32)
    numbers, found, counts = np.unique(labels[present], return_inverse=True, return_counts=True)
    places[present] = found
    return Classes(numbers, counts, places, _names(store) if len(numbers) else {})


def _names(store: Store) -> dict[int, str]:
    found = samples_of(store).rows(_NAMES)
    names = {}
    for label, metadata in zip(found["label"].tolist(), found["metadata"].tolist(), strict=True):
        name = class_name(metadata_of(metadata))
        if name is not None:
            names[int(label)] = name
    return dict(sorted(names.items()))
