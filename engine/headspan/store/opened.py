"""An open store: which images it shows, its sizes, and the samples of its plan.

Only rows of committed units are shown. Images that could not be used are skipped, or shown as NaN rows on request.
Every array, table and index of one open store counts the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Integer

from headspan.config import as_ranges
from headspan.errors import SettingsError, StoreError, counted, one_line
from headspan.io.locations import location_of
from headspan.io.ranged import bytes_of
from headspan.shards.samples import BadImage, Shard, Unit
from headspan.store.contents import Contents
from headspan.store.identity import model_name
from headspan.store.kept_samples import FEW_ROWS, KeptSamples
from headspan.store.tables import SAMPLES, read_notes, read_rows, read_shards, read_table, rows_of_keys

# Of a store with more images, opening reads no row: eight bytes for each take time and memory.
MANY_IMAGES = 1 << 20


class OpenStore:
    """The part of `reader.Store` that reads no contributions. `contents` is for headspan's own modules."""

    def __init__(self, path: str | Path, include_failed: bool = False) -> None:
        """Open the store at `path`; `include_failed` shows images that could not be used, and unfinished ones, as NaN.

        Raises StoreError if there is no store, it is damaged, or it has another format.
        """
        if not str(path):
            raise StoreError("the name of the store is empty; give the path that `headspan precompute --out` wrote")
        self.path = location_of(path, StoreError)
        self.contents = Contents(self.path)
        self._size = self.contents.size
        self._include_failed = include_failed
        if not self.contents.is_large and self._size.images <= MANY_IMAGES:
            # Raises if they contradict the commit records.
            _ = self._rows
        self._kept_samples: KeptSamples | None = None
        self._shards: list[Shard] | None = None

    @cached_property
    def _rows(self) -> np.ndarray:
        """The rows that are shown, as eight bytes each: of a large store, they are not read before they are needed."""
        return np.arange(self._size.images) if self._include_failed else self.contents.good_rows()

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}: {counted(self.images, 'image')}, layers {as_ranges(self.layers)}, "
            f"{self.heads_per_layer} heads of {self.head_dim}, joint {self.joint})"
        )

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        attributes = self.attributes
        lines = {
            "store": str(self.path),
            "model": model_name(attributes),
            "images": f"{self.images:,} of {self.planned_images:,} planned" + ("" if self.complete else ", unfinished"),
            "layers": f"{as_ranges(self.layers)} of {self.all_layers}",
            "heads": f"{self.heads_per_layer} in each layer, {self.head_dim} dimensions",
            "joint": f"{self.joint} dimensions",
            "arrays": ", ".join(self.contents.specs),
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(line)}</td></tr>" for name, line in lines.items())
        return f"<table>{cells}</table>"

    @property
    def attributes(self) -> dict[str, Any]:
        """The model, the settings and the sizes that the store records."""
        return self.contents.attributes

    @property
    def group(self) -> zarr.Group:
        """The Zarr group of the store, whose arrays have a row for each planned image."""
        return self.contents.group

    @property
    def images(self) -> int:
        """Number of images shown."""
        if "_rows" in self.__dict__:
            return len(self._rows)
        return self._size.images if self._include_failed else self.contents.good_images

    @property
    def planned_images(self) -> int:
        """Number of images of the plan, finished or not, usable or not."""
        return self._size.images

    @property
    def complete(self) -> bool:
        """Whether every unit of the plan is committed."""
        return bool(self.contents.done.all())

    @property
    def stored_bytes(self) -> int:
        """Bytes of all of the store's files, including those of analyses and of unfinished units."""
        # The records tell the sizes of shards, if something has read them.
        records = self.contents.__dict__.get("records", ())
        recorded = ((key, size) for record in records for key, (size, _) in record.files.items())
        return bytes_of(self.contents.storage, recorded)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose heads are stored."""
        return self._size.layers

    @property
    def all_layers(self) -> int:
        """Number of layers of the model."""
        return self._size.all_layers

    @property
    def heads_per_layer(self) -> int:
        """Number of heads of each layer."""
        return self._size.heads

    @property
    def head_dim(self) -> int:
        """Dimension of one head."""
        return self._size.head_dim

    @property
    def direct_layers(self) -> int:
        """How many of the last layers have heads that write to the embedding: all, or only the attention pooling."""
        return self._size.direct_layers

    @property
    def through_pool_layers(self) -> tuple[int, ...]:
        """The layers that `through_pool` can be asked for; none unless the model pools by attention."""
        return self._size.through_pool

    @property
    def tokens(self) -> int:
        """Number of source tokens; the first `prefix_tokens` are not patches."""
        return self._size.tokens

    @property
    def prefix_tokens(self) -> int:
        """Number of source tokens that are not patches: the class token and registers, if any."""
        return self._size.prefix_tokens

    @property
    def terms(self) -> int:
        """Number of terms other than heads and biases: the second axis of `mlps()`."""
        return self._size.terms

    @property
    def joint(self) -> int:
        """Dimension of the joint image-text space."""
        return self._size.joint

    @property
    def rows(self) -> np.ndarray:
        """The row in the Zarr arrays of each image shown, `[images]`."""
        return self._rows

    def row_of(self, image: int) -> int:
        """Return the row in the Zarr arrays of one image. Raises SettingsError if there is no such image."""
        if not -self.images <= image < self.images:
            raise SettingsError(f"{self.path}: image {image} does not exist; images count from 0 to {self.images - 1}")
        return int(self._rows[image])

    def images_of_rows(self, rows: Integer[np.ndarray, "*row"]) -> Integer[np.ndarray, "*row"]:
        """Return the index of the image at each row of the Zarr arrays; -1 where there is none, or it is not shown."""
        if self.images == self._size.images and (not rows.size or (rows.min() >= 0 and rows.max() < self.images)):
            # Of a store that shows all rows, a search among all of them would take milliseconds.
            return rows
        if not self.images:
            return np.full(rows.shape, -1)
        found = np.minimum(np.searchsorted(self._rows, rows), self.images - 1)
        return np.where(self._rows[found] == rows, found, -1)

    def image_of_key(self, key: str) -> int:
        """Return the index of the image with that key, the first one if there are several.

        Raises SettingsError if no image has the key, or if those that have it are not shown.
        """
        rows = [row for row, _ in rows_of_keys(self.contents.storage, self.contents.units, [key])]
        shown = self.images_of_rows(np.array(rows, np.int64))
        if (shown >= 0).any():
            return int(shown[shown >= 0][0])
        if not rows:
            raise SettingsError(f"{self.path}: no image has the key {key!r}; headspan export --to writes all keys")
        bad = {each.row: each.reason for each in self.bad_images()}
        why = next((bad[row] for row in rows if row in bad), "its unit is not finished")
        raise SettingsError(f"{self.path}: the image with the key {key!r} has no numbers ({why}); choose another")

    def samples(
        self, images: Sequence[int] | np.ndarray | None = None, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return row, key, url, member, offset, size, caption, label and metadata of each image shown.

        `images` selects images by indices, in that order, or by a mask; only their part of the plan is read. `columns`
        names some columns, in which case the others are not read. Raises SettingsError if there are no such images or
        columns.
        """
        chosen = SAMPLES.names if columns is None else list(columns)
        if unknown := [name for name in chosen if name not in SAMPLES.names]:
            raise SettingsError(f"{self.path}: samples have no column {unknown[0]!r}, only {', '.join(SAMPLES.names)}")
        if images is not None:
            try:
                rows = self._rows[images if isinstance(images, np.ndarray) else list(images)]
            except IndexError as error:
                raise SettingsError(
                    f"{self.path}: these images do not all exist ({one_line(error)}); count from 0 to "
                    f"{self.images - 1}, or give a mask of {self.images}"
                ) from error
            if self._kept_samples is not None and len(rows) <= FEW_ROWS:
                return self._kept_samples.rows(rows, chosen)
            return read_rows(self.contents.storage, rows, self._size.unit_images, chosen)
        shown = np.zeros(self._size.images, bool)
        shown[self._rows] = True
        # Filtered part by part; `take` would join the parts first, and their captions may exceed Arrow's 2 GiB.
        return read_table(self.contents.storage, self.contents.units, chosen).filter(pa.array(shown))

    def few_samples(self, images: Sequence[int] | np.ndarray, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return `columns` of a few images' samples, as `samples(images, columns).to_pylist()` does."""
        if self._kept_samples is None or len(images) > FEW_ROWS:
            return self.samples(images, columns).to_pylist()
        found = self._kept_samples.values(self._rows[np.asarray(images, np.int64)], columns)
        return [dict(zip(columns, sample, strict=True)) for sample in zip(*found, strict=True)]

    def keep_samples(self, most_bytes: int) -> None:
        """Keep the columns that `samples` reads for a few images, at most `most_bytes`, for many small questions."""
        self._kept_samples = KeptSamples(self.contents.storage, self._size.unit_images, most_bytes)

    def bad_images(self) -> list[BadImage]:
        """Return the images that have a row but could not be used, with the reasons."""
        return [bad for record in self.contents.records for bad in record.bad]

    def quarantined_units(self) -> list[Unit]:
        """Return the units that repeatedly ended their process and are skipped; `headspan repair` retries them."""
        return self.contents.commits.quarantined_units()

    def shards(self) -> list[Shard]:
        """Return the shards of the plan, with the size and time of modification that they had then."""
        if self._shards is None:
            self._shards = read_shards(self.contents.storage)
        return list(self._shards)

    def notes(self) -> list[BadImage]:
        """Return what the plan could not use: unreadable captions, and members that belong to no image (row -1)."""
        return read_notes(self.contents.storage)
