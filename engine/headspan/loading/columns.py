"""Read chosen numbers of chosen images into arrays: the columns of a batch.

Stored numbers are copied from memory maps straight into the batch. Stores whose shards cannot be mapped are read with
Zarr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from jaxtyping import Int64

from headspan.decompose.formula import check_convention, head_coordinates, head_directions
from headspan.errors import SettingsError, counted
from headspan.io.locations import Location
from headspan.loading.staged import Kind, Staged
from headspan.store.contents import Contents
from headspan.store.picked_rows import copy_rows, pieces_of, rows_with_zarr, within_pieces
from headspan.store.reader import Store
from headspan.store.shard_rows import UnmappableError

# Columns that are no stored arrays.
CONTRIBUTIONS, IMAGE, LABEL = "contributions", "image", "label"
# Which axis of a stored array `layers` and `heads` select from, counted without the image axis.
_LAYER_AXIS = {"heads": 0, "patches": 0}
_HEAD_AXIS = {"heads": 1, "patches": 1}
# Gives an array of that shape and type, whose numbers are not set.
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]


@dataclass(frozen=True, slots=True)
class Choice:
    """What a batch holds. `layers` are layers of the model; None stands for all that are stored."""

    arrays: tuple[str, ...]
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    # Of the arrays that are stored as float16.
    dtype: np.dtype
    convention: str
    normalised: bool


class Columns:
    """The columns of one store. Copies, and other processes after unpickling, open its files themselves."""

    def __init__(self, store: Store, choice: Choice, images: Int64[np.ndarray, " image"]) -> None:
        """Check `choice`. `images` are the images that can be read. Raises SettingsError for what the store lacks."""
        self._path, self._choice = store.path, choice
        self._contents: Contents | None = store.contents
        self._rows, self._images = store.rows[images], images
        size = store.contents.size
        layers = size.layers if choice.layers is None else choice.layers
        heads = range(size.heads) if choice.heads is None else choice.heads
        self._layers = np.array([store.contents.layer_index(layer) for layer in layers], np.int64)
        for head in heads:
            store.contents.layer_index(size.layers[-1], head)
        self._heads = np.array(heads, np.int64)
        check_convention(choice.convention)
        self._check()
        self._labels = _labels(store, images) if LABEL in choice.arrays else None
        self._directions: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, object]:
        # Memory maps cannot be pickled, and belong to the process that opened them.
        return {**self.__dict__, "_contents": None}

    @property
    def path(self) -> Location:
        """The store's path, for messages."""
        return self._path

    def read(self, places: Int64[np.ndarray, " image"], allocate: Allocate) -> dict[str, np.ndarray]:
        """Return the columns of the images at `places` of those chosen, by name, `[image, …]`, in that order."""
        rows = self._rows[places]
        return self._columns(
            places, allocate, lambda name, out: copy_rows(self._open(), name, rows, self._chosen(name), out)
        )

    def read_staged(
        self,
        places: Int64[np.ndarray, " image"],
        staged: Staged,
        at: Int64[np.ndarray, " image"],
        allocate: Allocate,
    ) -> dict[str, np.ndarray]:
        """Return what `read` returns, from what `stage` copied to the places `at` of `staged`."""
        return self._columns(places, allocate, lambda name, out: staged.take(name, at, out))

    def stage(self, places: Int64[np.ndarray, " image"], staged: Staged, first: int) -> None:
        """Copy the stored numbers of the images at `places`, which are sorted, to `staged`, from place `first` on."""
        rows = self._rows[places]
        for name, kind in self.staged_kinds.items():
            out = staged.pieces[name][:, first : first + len(places)]
            try:
                self._open().maps(name).copy_pieces(rows, self._pieces(name), out)
            except UnmappableError:
                values = rows_with_zarr(self._open(), name, rows, self._chosen(name))
                values = values.reshape(len(rows), kind.pieces, -1)
                out[...] = np.ascontiguousarray(values).view(kind.piece)[..., 0].T

    @cached_property
    def staged_kinds(self) -> dict[str, Kind]:
        """How each stored array that a batch is read from is staged."""
        kinds = {}
        for name in self._stored_names():
            maps = self._open().maps(name)
            kinds[name] = Kind(len(self._pieces(name)), maps.piece, np.dtype(maps.spec.dtype))
        return kinds

    def read_ahead(self, places: Int64[np.ndarray, " image"]) -> None:
        """Ask the system to read the files of the images at `places`, which are sorted, and do not wait for them."""
        rows = self._rows[places]
        borders = np.flatnonzero(np.diff(rows) != 1) + 1
        for name in self._stored_names():
            maps = self._open().maps(name)
            for span in np.split(rows, borders):
                maps.read_ahead(int(span[0]), int(span[-1]) + 1, self._pieces(name))

    def _open(self) -> Contents:
        if self._contents is None:
            self._contents = Contents(self._path)
        return self._contents

    def _check(self) -> None:
        contents, known = self._open(), (CONTRIBUTIONS, IMAGE, LABEL)
        names = [name for name in contents.specs if name != "ok"]
        if not self._choice.arrays or len(set(self._choice.arrays)) < len(self._choice.arrays):
            raise SettingsError(f"{self._path}: arrays {self._choice.arrays}: name at least one array, and each once")
        for name in self._choice.arrays:
            if name not in (*known, *names):
                raise SettingsError(
                    f"{self._path}: holds no array {name!r}; choose from {', '.join((*names, *known))}, or precompute "
                    "with --emit"
                )
        if not len(self._layers) or not len(self._heads):
            raise SettingsError(f"{self._path}: no layer or no head is named; name at least one of each, or neither")

    def _stored_names(self) -> list[str]:
        """The stored arrays that a batch is read from."""
        names = [name for name in self._choice.arrays if name not in (CONTRIBUTIONS, IMAGE, LABEL)]
        if CONTRIBUTIONS in self._choice.arrays:
            names += [name for name in ("heads", "norm") if name not in names]
        return names

    def _type_of(self, name: str) -> np.dtype:
        stored = np.dtype(self._open().specs[name].dtype)
        return self._choice.dtype if stored == np.float16 else stored

    def _chosen(self, name: str) -> list[np.ndarray]:
        """The places along each axis after the rows that are read."""
        chosen = [np.arange(length) for length in self._open().specs[name].shape[1:]]
        if name in _LAYER_AXIS:
            chosen[_LAYER_AXIS[name]] = self._layers
        if name in _HEAD_AXIS:
            chosen[_HEAD_AXIS[name]] = self._heads
        return chosen

    def _pieces(self, name: str) -> Int64[np.ndarray, " piece"]:
        """Which pieces of a row are read."""
        return pieces_of(self._open().maps(name).apart, self._chosen(name))

    def _columns(
        self, places: Int64[np.ndarray, " image"], allocate: Allocate, copy: Callable[[str, np.ndarray], None]
    ) -> dict[str, np.ndarray]:
        """The columns of some images; `copy` copies a stored array of theirs to `[image, piece, …]`."""
        found: dict[str, np.ndarray] = {}
        for name in self._choice.arrays:
            if name == IMAGE:
                values = self._images[places]
            elif name == LABEL:
                assert self._labels is not None
                values = self._labels[places]
            elif name == CONTRIBUTIONS:
                values = self._contributions(len(places), allocate, copy)
            else:
                values = self._stored(name, len(places), self._type_of(name), allocate, copy)
            found[name] = values
        return found

    def _stored(
        self, name: str, images: int, dtype: np.dtype, allocate: Allocate, copy: Callable[[str, np.ndarray], None]
    ) -> np.ndarray:
        maps, chosen = self._open().maps(name), self._chosen(name)
        out = allocate((images, *map(len, chosen[: len(maps.apart)]), *maps.whole), dtype)
        copy(name, out.reshape(images, len(self._pieces(name)), *maps.whole))
        return within_pieces(out, len(maps.apart), chosen)

    def _contributions(self, images: int, allocate: Allocate, copy: Callable[[str, np.ndarray], None]) -> np.ndarray:
        """Contributions in joint space, `[image, layer, head, joint]`, float32, as `Store.heads` computes them."""
        contents, choice = self._open(), self._choice
        if self._directions is None:
            size = contents.size
            convention = check_convention(choice.convention)
            self._directions = np.stack(
                [
                    head_directions(contents.folded, index, size.layers[index] - size.all_layers, head, convention)
                    for index, head in product(self._layers.tolist(), self._heads.tolist())
                ]
            )
        outputs = self._stored("heads", images, np.dtype(np.float32), np.empty, copy)
        norm = self._stored("norm", images, np.dtype(np.float32), np.empty, copy)
        layers, heads = outputs.shape[1:3]
        spread = np.broadcast_to(norm[:, None, None], (images, layers, heads, norm.shape[1]))
        coordinates = head_coordinates(outputs, spread, choice.normalised).reshape(images, layers * heads, -1)
        out = allocate((images, layers, heads, self._directions.shape[2]), np.dtype(np.float32))
        flat = out.reshape(images, layers * heads, -1)
        np.matmul(coordinates.swapaxes(0, 1), self._directions, out=flat.swapaxes(0, 1))
        return out


def _labels(store: Store, images: Int64[np.ndarray, " image"]) -> Int64[np.ndarray, " image"]:
    """The class of each image. Raises SettingsError if one has none."""
    column = store.samples(images).column("label")
    if column.null_count:
        raise SettingsError(
            f"{store.path}: {counted(column.null_count, 'image')} of {len(images):,} have no class (no .cls member), "
            "so label cannot be read; choose images that have one, or leave label out"
        )
    return np.asarray(column.to_numpy(), np.int64)
