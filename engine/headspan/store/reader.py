"""A store, read without torch: contributions in joint space and in head coordinates, samples, moments.

Only rows of committed units are shown. Images that failed are left out, or kept as NaN rows on request;
either way every array, table and index of one `Store` counts the same images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from jaxtyping import Float, Float32
from numpy.typing import DTypeLike

from headspan.config import spans
from headspan.decompose.formula import (
    EXTRA_COORDINATES,
    Folded,
    bias_contributions,
    check_convention,
    head_coordinates,
    head_directions,
    mean_and_bias_terms,
    mlp_contributions,
)
from headspan.errors import SettingsError, StoreError, counted, one_line
from headspan.shards.samples import BadImage, Sample, Shard, Unit
from headspan.store.mapped import MappedRows, UnmappableError
from headspan.store.moments_file import MergedMoments
from headspan.store.products import summed_products
from headspan.store.schema import (
    UNREADABLE,
    ArraySpec,
    dimensions,
    open_group,
    stored_row_arrays,
)
from headspan.store.tables import read_notes, read_rows, read_shards, read_table, read_unit
from headspan.store.write.commits import Commits, Files, UnitRecord
from headspan.user_paths import expand_user


class Store:
    """What `precompute` wrote. Layers and heads count from 0, as in the model; `layers` lists the kept ones.

    Contributions are float32, in the published convention (`even`) and over `‖embedding‖` unless asked
    otherwise: all terms of an image then sum to its unit embedding. `convention="per_term"` centres each
    term by its own mean, and gives the output biases and the final norm's bias as terms of their own.
    """

    def __init__(self, path: str | Path, include_failed: bool = False) -> None:
        """Open the store at `path`. Raises StoreError where there is none, or of another format."""
        if not str(path):
            raise StoreError("the name of the store is empty; give the path that `headspan precompute --out` wrote")
        self.path = expand_user(path, StoreError)
        self.group, self.attributes = open_group(self.path)
        self._size = dimensions(self.attributes)
        self._commits = Commits(self.path, -(-self._size.images // self._size.unit_images))
        self.records: list[UnitRecord] = self._commits.records()
        # A unit without a record may be half written: nothing of it is to be trusted.
        self._committed = np.zeros(self._size.images, bool)
        for record in self.records:
            self._committed[record.first_row : record.first_row + record.rows] = True
        self._mapped: dict[str, MappedRows] = {}
        self._rows = np.arange(self._size.images) if include_failed else self._good_rows()

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}: {counted(self.images, 'image')}, layers {spans(self.layers)}, "
            f"{self.heads_per_layer} heads of {self.head_dim}, joint {self.joint})"
        )

    @property
    def images(self) -> int:
        """Number of images shown."""
        return len(self._rows)

    @property
    def planned_images(self) -> int:
        """Number of images of the plan, finished or not, good or bad."""
        return self._size.images

    @property
    def complete(self) -> bool:
        """Whether every unit of the plan is committed."""
        return sum(record.rows for record in self.records) == self._size.images

    @property
    def stored_bytes(self) -> int:
        """Bytes of all of the store's files on disk, of analyses and unfinished units too."""
        found = 0
        for file in self.path.rglob("*"):
            # A writer may rename what was listed.
            with suppress(FileNotFoundError):
                found += file.stat().st_size if file.is_file() else 0
        return found

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
        """How many layers, the model's last ones, have heads that write to the embedding: all, or the pooling."""
        return self._size.direct_layers

    @property
    def through_pool_layers(self) -> tuple[int, ...]:
        """The layers of which `carried` is stored; none but before an attention pooling."""
        return self._size.carried

    @property
    def tokens(self) -> int:
        """Number of source tokens; the first `prefix_tokens` are no patches."""
        return self._size.tokens

    @property
    def prefix_tokens(self) -> int:
        """Number of source tokens that are no patches: the class token and registers, if any."""
        return self._size.prefix_tokens

    @property
    def terms(self) -> int:
        """Number of terms beside heads and biases, as `mlps` has them."""
        return self._size.terms

    @property
    def joint(self) -> int:
        """Dimension of the joint image-text space."""
        return self._size.joint

    @property
    def rows(self) -> np.ndarray:
        """The row in the Zarr arrays of each image shown, `[images]`."""
        return self._rows

    @cached_property
    def embedding(self) -> Float32[np.ndarray, "images joint"]:
        """The model's image embeddings, not normalised."""
        return self._read("embedding")

    @cached_property
    def norm(self) -> Float32[np.ndarray, "images 3"]:
        """The final norm's mean `μ` and `s`, and `‖embedding‖`, of each image."""
        return self._read("norm")

    def head(
        self, layer: int, head: int, convention: str = "uniform", normalised: bool = True
    ) -> Float32[np.ndarray, "images joint"]:
        """Contributions of one head to the image embeddings, summed over source tokens."""
        coordinates = head_coordinates(self.head_coordinates(layer, head), self.norm, normalised)
        return coordinates @ self.head_directions(layer, head, convention)

    def head_coordinates(
        self, layer: int, head: int, dtype: DTypeLike = np.float32
    ) -> Float[np.ndarray, "images head_dim"]:
        """One head's own coordinates, `Σ_n α v`; as float16 they are what is stored."""
        return self._read("heads", self.layer_index(layer, head), head, dtype=_offered(dtype))

    def image_coordinates(self, image: int, layer: int, head: int) -> Float32[np.ndarray, " head_dim"]:
        """One head's own coordinates of the image of that index."""
        return self._row("heads", image, self.layer_index(layer, head), head, dtype=np.float32)

    def coordinate_products(
        self, heads: Sequence[tuple[int, int]], matrices: Sequence[Float[np.ndarray, "coordinate column"]]
    ) -> Float32[np.ndarray, "column images"]:
        """Each image's normalised coordinates in each of `heads`, (layer, head), times that head's matrix, summed.

        One pass over what is stored, on all cores: neither a dense form nor a float32 copy is ever in memory.
        """
        places = [(self.layer_index(layer, head), head) for layer, head in heads]
        try:
            products = summed_products(self._maps("heads"), self._mean_and_bias, places, matrices)
        except UnmappableError:
            products = np.zeros((matrices[0].shape[1], self.images), np.float32)
            for (layer, head), matrix in zip(heads, matrices, strict=True):
                own = self.head_coordinates(layer, head)
                products += (head_coordinates(own, self.norm, normalised=True) @ matrix).T
            return products
        return products if self.images == self.planned_images else products[:, self._rows]

    def head_directions(
        self, layer: int, head: int, convention: str = "uniform"
    ) -> Float32[np.ndarray, "coordinate joint"]:
        """The fixed matrix that carries `[Σ α v / s, 1/s, μ/s, 1]` of one head into joint space."""
        kept, place = self.layer_index(layer, head), layer - self.all_layers
        return head_directions(self.folded, kept, place, head, check_convention(convention))

    def patches(
        self, image: int, layer: int, convention: str = "uniform", normalised: bool = True
    ) -> Float32[np.ndarray, "token head joint"]:
        """Contributions of every source token through every head of one layer, for the image of that index."""
        head_outputs = self.patch_coordinates(image, layer)
        norm = np.broadcast_to(self.norm[image], (self.tokens, 3))
        joint = np.empty((self.tokens, self.heads_per_layer, self.joint), np.float32)
        for head in range(self.heads_per_layer):
            coordinates = head_coordinates(head_outputs[:, head], norm, normalised, parts=self.tokens)
            joint[:, head] = coordinates @ self.head_directions(layer, head, convention)
        return joint

    def patch_coordinates(
        self, image: int, layer: int | None = None, dtype: DTypeLike = np.float32
    ) -> Float[np.ndarray, "*layer token head head_dim"]:
        """`α v` of every source token and head, for the image of that index: of one layer, or without one of all that
        are stored, with an axis of their own in front. As float16 they are what is stored."""
        index = () if layer is None else (self.layer_index(layer),)
        return self._row("patches", image, *index, dtype=_offered(dtype)).swapaxes(-3, -2)

    def mlps(self, convention: str = "uniform", normalised: bool = True) -> Float32[np.ndarray, "images term joint"]:
        """Contributions of the initial state (term 0) and of every layer's MLP; of the pooling's MLP alone where
        the model pools by attention, which may have none."""
        if not self.terms:
            return np.zeros((self.images, 0, self.joint), np.float32)
        centred, means = self._read("mlps", dtype=np.float32), self._read("mlp_means")
        return mlp_contributions(centred, means, self.norm, self.folded, check_convention(convention), normalised)

    def through_pool(self, layer: int, head: int, normalised: bool = True) -> Float32[np.ndarray, "images joint"]:
        """What the attention pooling's heads took from a head of an earlier layer, each centred by its own mean.

        It is a share of those heads' contributions, and no new part of the embedding; what of the head passes the
        pooling's MLP is not in it. Raises SettingsError where it is not stored.
        """
        array = self._array("carried")
        if layer not in self.through_pool_layers or not 0 <= head < array.shape[2]:
            raise SettingsError(
                f"{self.path}: head {head} of layer {layer} is not carried; stored are layers "
                f"{spans(self.through_pool_layers)} with heads 0 to {array.shape[2] - 1}"
            )
        found = self._read("carried", self.through_pool_layers.index(layer), head, dtype=np.float32)
        return found / self.norm[:, 2:] if normalised else found

    def biases(self, normalised: bool = True) -> Float32[np.ndarray, "images bias joint"]:
        """The terms that `own` keeps apart: every direct layer's output bias, then the final norm's bias (with the
        projection's own, where it has one)."""
        return bias_contributions(self.norm, self.folded, normalised)

    def samples(self, images: Sequence[int] | np.ndarray | None = None) -> pa.Table:
        """Row, key, url, member, offset, size, caption, label and metadata of each image shown.

        With `images`, of those of these indices alone, in that order, or where a mask is true: what the plan says of
        the others is not read. Raises SettingsError for others than are shown.
        """
        if images is not None:
            try:
                rows = self._rows[images if isinstance(images, np.ndarray) else list(images)]
            except IndexError as error:
                raise SettingsError(
                    f"{self.path}: samples of other images than its {self.images} ({one_line(error)}); count from 0 to "
                    f"{self.images - 1}, or give a mask of {self.images}"
                ) from error
            return read_rows(self.path, rows, self._size.unit_images)
        shown = np.zeros(self._size.images, bool)
        shown[self._rows] = True
        # Part by part, where `take` would first join the parts, whose captions together may pass Arrow's 2 GiB.
        return read_table(self.path, -(-self._size.images // self._size.unit_images)).filter(pa.array(shown))

    def bad_images(self) -> list[BadImage]:
        """The images that kept their row but could not be used, and why."""
        return [bad for record in self.records for bad in record.bad]

    def moments(self) -> MergedMoments:
        """Count, sum and Gram matrix of every kept head's normalised coordinates, over all good images."""
        moments = None if self._commits.complete else self._commits.moments()
        # Asked again, since the run may have been finished, and its parts deleted, in between.
        if self._commits.complete:
            count, total, gram = (self._values(f"moments/{name}") for name in ("count", "sum", "gram"))
            return MergedMoments(int(count[0]), total, gram)
        if moments is None:
            raise StoreError(f"{self.path}: no unit is finished yet; run the precompute command again to go on")
        return moments

    @cached_property
    def folded(self) -> Folded:
        """The model's fixed matrices and biases."""
        names = Folded.__dataclass_fields__
        return Folded(**{name: self._values(f"model/{name}") for name in names})

    def quarantined_units(self) -> list[Unit]:
        """The units that were set aside, since they ended the process again and again; `headspan repair` tries anew."""
        return self._commits.quarantined_units()

    def shards(self) -> list[Shard]:
        """The tars of the plan, with their size and time as they were then."""
        return read_shards(self.path)

    def samples_of(self, record: UnitRecord) -> Iterator[Sample]:
        """The samples of one unit, in row order."""
        return read_unit(self.path, record.unit)

    def notes(self) -> list[BadImage]:
        """What the plan met that is no image: captions that cannot be read, members beside no image (row -1)."""
        return read_notes(self.path)

    def other_files(self) -> Files:
        """Size and crc32c of the store's files that belong to no unit, as they were written."""
        return self._commits.other_files()

    def row_arrays(self) -> Iterator[tuple[str, zarr.Array[Any]]]:
        """The Zarr arrays with a row an image, all rows, by name."""
        for name in self.row_specs:
            yield name, self._array(name)

    @cached_property
    def row_specs(self) -> dict[str, ArraySpec]:
        """Shape, shards and chunks of those arrays."""
        return stored_row_arrays(self.group, self._size, tuple(self.attributes["emit"]))

    def layer_index(self, layer: int, head: int = 0) -> int:
        """The place of `layer` among the kept ones; SettingsError where it, or `head`, is not stored."""
        if layer in range(self.all_layers - self.direct_layers):
            raise SettingsError(
                f"{self.path}: the heads of layer {layer} reach the embedding through layer {self.all_layers - 1}, the "
                "attention pooling, alone; ask that layer's, or carried() for what came from this one"
            )
        if layer not in self.layers:
            raise SettingsError(
                f"{self.path}: layer {layer} is not stored; stored are {spans(self.layers)} of the model's "
                f"{self.all_layers}, so choose one of them or precompute with --layers all"
            )
        if not 0 <= head < self.heads_per_layer:
            raise SettingsError(f"{self.path}: head {head}; a layer's heads are 0 to {self.heads_per_layer - 1}")
        return self.layers.index(layer)

    def _array(self, name: str) -> zarr.Array[Any]:
        if not (self.path / name / "zarr.json").is_file():
            raise SettingsError(f"{self.path}: holds no {name}; precompute with --emit heads,{name} to have them")
        try:
            array = self.group[name]
        except UNREADABLE as error:
            raise StoreError(
                f"{self.path}: the metadata of {name} cannot be read ({one_line(error)}); headspan repair mends it"
            ) from error
        assert isinstance(array, zarr.Array), name
        return array

    @cached_property
    def _mean_and_bias(self) -> Float32[np.ndarray, "3 rows"]:
        """The normalised `mean_and_bias_terms` of every row of the plan; NaN where it is not shown."""
        mean_and_bias = np.full((EXTRA_COORDINATES, self.planned_images), np.nan, np.float32)
        mean_and_bias[:, self._rows] = mean_and_bias_terms(self.norm, normalised=True).T
        return mean_and_bias

    def _read(self, name: str, *index: int, dtype: DTypeLike | None = None) -> np.ndarray:
        """The rows that this store shows, as `dtype` where it is not the stored one."""
        try:
            values = self._maps(name).read(index, dtype)
        except UnmappableError:
            values = self._values(name, slice(None), *index, dtype=dtype)
        if len(self._rows) < len(values):
            return values[self._rows]
        if not self._committed.all():
            values[~self._committed] = np.nan
        return values

    def _row_of(self, image: int) -> int:
        if not -self.images <= image < self.images:
            raise SettingsError(f"{self.path}: image {image} of {self.images}; count from 0 to {self.images - 1}")
        return int(self._rows[image])

    def _maps(self, name: str) -> MappedRows:
        if name not in self._mapped:
            # Refused where it is not stored.
            self._array(name)
            self._mapped[name] = MappedRows(self.path, self.row_specs[name])
        return self._mapped[name]

    def _row(self, name: str, image: int, *index: int, dtype: DTypeLike | None = None) -> np.ndarray:
        """The image of that index, of an array of all; NaN where its unit is not committed."""
        row = self._row_of(image)
        try:
            values = self._maps(name).row(row, index, dtype)
        except UnmappableError:
            values = self._values(name, row, *index, dtype=dtype)
        return values if self._committed[row] else np.full_like(values, np.nan)

    def _values(self, name: str, *selection: slice | int, dtype: DTypeLike | None = None) -> np.ndarray:
        array = self._array(name)
        try:
            return np.asarray(array[selection or ...], dtype)
        except (ValueError, OSError) as error:
            raise StoreError(
                f"{self.path}: {name} cannot be read ({one_line(error)}); headspan verify says which unit is damaged"
            ) from error

    def _good_rows(self) -> np.ndarray:
        good = np.flatnonzero(self._committed & (np.asarray(self._array("ok")[...]) == 1))
        recorded = sum(record.images for record in self.records)
        if len(good) != recorded:
            raise StoreError(
                f"{self.path}: ok marks {counted(len(good), 'image')}, the commit records {recorded}; headspan "
                f"verify says which "
                "unit is damaged"
            )
        return good


def open_store(path: str | Path, include_failed: bool = False) -> Store:
    """Open a store; `include_failed` shows images that failed (and unfinished ones) as NaN rows."""
    return Store(path, include_failed)


def _offered(dtype: DTypeLike) -> np.dtype[Any]:
    """`dtype`; SettingsError where numbers of 16 bits are not given as it."""
    with suppress(TypeError):
        if (found := np.dtype(dtype)) in (np.float16, np.float32):
            return found
    name = getattr(dtype, "__name__", dtype)
    raise SettingsError(f"dtype {name}: coordinates are given as float32, or as float16, which is what is stored")
