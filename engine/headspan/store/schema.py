"""The store's format: which arrays, of which shape, in which chunks; its attributes and their check.

A store is a Zarr v3 group. Rows are images in plan order, and all arrays share them. A unit of work is
a whole number of Zarr shards of every array, so two units never touch one file. The fill value is NaN,
so that a missing shard never reads as zeros. Nothing here writes numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import zarr

from headspan.config import MemberNames
from headspan.decompose.formula import EXTRA_COORDINATES
from headspan.errors import StoreError, one_line, shortened

FORMAT = 1
# The one folder of a store that is no part of the Zarr hierarchy: Parquet tables and commit records.
RECORDS = "records"
# Of the root's metadata, without which nothing else can be read.
ROOT_COPY = f"{RECORDS}/root.json"
# Rows in an inner chunk: many where one head is read over all images, one where one image's patches are.
_CHUNK_ROWS = {"heads": 4096, "patches": 1, "carried": 256}
# What a row of chunks may take, unless it is one row of the array: it is filled in memory, whole.
_ROW_OF_CHUNKS_BYTES = 64 << 20
# The axes of which an inner chunk holds one place: a head is read without its neighbours, and the patches of an image
# lie side by side.
_APART = {"heads": ("layer", "head"), "patches": ("layer",), "carried": ("carried_layer", "trunk_head")}
_DEFAULT_CHUNK_ROWS = 64
_SHARD_BYTES = 256 << 20
# The kinds of those root attributes that say how the arrays are read, and the model that made them loaded.
_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("model", "weights_sha256", "text_sha256", "precision", "decode"), str),
    **dict.fromkeys(("model_config", "preprocess", "dimensions", "made_with", "tower", "sum"), dict),
    "pretrained": str | None,
    "image_size": int | None,
    "emit": list,
}
_LONGEST_QUOTE = 60
# What zarr raises over an array's metadata that are damaged, wherever that is.
UNREADABLE = (ValueError, TypeError, KeyError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes that fix every array's shape.

    `layers` are the kept ones of those whose heads write to the embedding, `carried` the kept ones of those
    whose heads are carried through an attention pooling; `all_layers` counts every layer of the model.
    """

    images: int
    unit_images: int
    layers: tuple[int, ...]
    all_layers: int
    # How many layers, the last ones, have heads that write to the embedding.
    direct_layers: int
    heads: int
    head_dim: int
    # Source tokens of a layer in `layers`; the first `prefix_tokens` of them are no patches.
    tokens: int
    prefix_tokens: int
    joint: int
    # Terms beside heads and biases.
    terms: int
    carried: tuple[int, ...] = ()
    carried_heads: int = 0


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array: its shape, and the shapes of its shards (files) and inner chunks."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    shard: tuple[int, ...]
    chunk: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """How many inner chunks a shard has along each axis."""
        return tuple(length // part for length, part in zip(self.shard, self.chunk, strict=True))

    def used_row_chunks(self, first_row: int) -> int:
        """How many rows of chunks the shard that begins with `first_row` has; those beyond the array's end are left
        out."""
        return math.ceil(min(self.shard[0], self.shape[0] - first_row) / self.chunk[0])

    @property
    def fill(self) -> float | int:
        """NaN, or 0 for whole numbers."""
        return float("nan") if np.dtype(self.dtype).kind == "f" else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize

    def file(self, row: int) -> str:
        """The path, within the store, of the shard that holds `row`."""
        parts = [str(row // self.shard[0]), *("0" for _ in self.shape[1:])]
        return "/".join([self.name, "c", *parts])


def row_arrays(size: Dimensions, emit: tuple[str, ...]) -> dict[str, ArraySpec]:
    """The arrays with a row an image, for what is emitted."""
    layers, heads, head_dim, joint = len(size.layers), size.heads, size.head_dim, size.joint
    axes: dict[str, tuple[tuple[str, ...], tuple[int, ...], str]] = {
        "ok": ((), (), "uint8"),
        "embedding": (("joint",), (joint,), "float32"),
        "norm": (("statistic",), (3,), "float32"),
        "heads": (("layer", "head", "head_dim"), (layers, heads, head_dim), "float16"),
    }
    if "patches" in emit:
        axes["patches"] = (
            ("layer", "head", "token", "head_dim"),
            (layers, heads, size.tokens, head_dim),
            "float16",
        )
    if "mlps" in emit and size.terms:
        axes["mlps"] = (("term", "joint"), (size.terms, joint), "float16")
        axes["mlp_means"] = (("term",), (size.terms,), "float32")
    if "carried" in emit:
        shape = (len(size.carried), size.carried_heads, joint)
        axes["carried"] = (("carried_layer", "trunk_head", "joint"), shape, "float16")
    return {name: _row_spec(name, *spec, size) for name, spec in axes.items()}


def stored_row_arrays(root: zarr.Group, size: Dimensions, emit: tuple[str, ...]) -> dict[str, ArraySpec]:
    """`row_arrays` of the store `root`, in the shards and chunks that it was planned with.

    An array whose metadata cannot be read, or contradict the settings, is read as it would be planned now; from being
    written it is kept by `refuse_unlike`.
    """
    found = {}
    for name, spec in row_arrays(size, emit).items():
        try:
            found[name] = _as_stored(spec, root[name], size.unit_images)
        except UNREADABLE:
            found[name] = spec
    return found


def refuse_unlike(path: Path, specs: dict[str, ArraySpec], unit_images: int) -> None:
    """Raise StoreError where the metadata of an array of the store at `path` are damaged, or are not `specs`'."""
    root = zarr.open_group(path, mode="r", use_consolidated=False)
    for name, spec in specs.items():
        try:
            alike = _as_stored(spec, root[name], unit_images) == spec
        except UNREADABLE:
            alike = False
        if not alike:
            raise StoreError(
                f"{path / name / 'zarr.json'}: is not as it was planned; run headspan repair, and if that does not "
                "mend it, restore it from a copy of the store"
            )


def _as_stored(spec: ArraySpec, array: zarr.Array[Any] | zarr.Group, unit_images: int) -> ArraySpec:
    """`spec` in the shards and chunks of `array`; ValueError where those are not an array's of such a store."""
    if not isinstance(array, zarr.Array) or array.shape != spec.shape or array.shards is None:
        raise ValueError(f"{spec.name} is another array")
    lengths = zip((unit_images, *spec.shape[1:]), array.shards, array.chunks, strict=True)
    if not all(length % shard == 0 and shard % chunk == 0 for length, shard, chunk in lengths):
        raise ValueError(f"{spec.name} has other shards")
    return replace(spec, shard=array.shards, chunk=array.chunks)


def _row_spec(name: str, dims: tuple[str, ...], tail: tuple[int, ...], dtype: str, size: Dimensions) -> ArraySpec:
    unit = size.unit_images
    row_bytes = math.prod(tail) * np.dtype(dtype).itemsize
    most = max(1, min(_CHUNK_ROWS.get(name, _DEFAULT_CHUNK_ROWS), _ROW_OF_CHUNKS_BYTES // row_bytes, unit))
    chunk_rows = next(rows for rows in range(most, 0, -1) if unit % rows == 0)
    # The largest part of a unit that keeps a shard under its size, a whole number of inner chunks.
    parts = [n for n in range(1, unit // chunk_rows + 1) if (unit // chunk_rows) % n == 0]
    fitting = [n for n in parts if unit // n * row_bytes <= _SHARD_BYTES]
    shard_rows = unit // (fitting[0] if fitting else parts[-1])
    apart = _APART.get(name, ())
    chunk_tail = tuple(1 if dim in apart else length for dim, length in zip(dims, tail, strict=True))
    return ArraySpec(
        name=name,
        dims=("image", *dims),
        shape=(size.images, *tail),
        dtype=dtype,
        shard=(shard_rows, *tail),
        chunk=(chunk_rows, *chunk_tail),
    )


def moment_arrays(size: Dimensions) -> dict[str, ArraySpec]:
    """The arrays of the merged moments, by their name in the group `moments`."""
    dims = ("layer", "head", "coordinate")
    coordinates = size.head_dim + EXTRA_COORDINATES
    shape = (len(size.layers), size.heads, coordinates)
    return {
        "count": whole_array("moments/count", ("scalar",), (1,), "int64"),
        "sum": whole_array("moments/sum", dims, shape, "float64"),
        "gram": whole_array("moments/gram", (*dims, "coordinate_2"), (*shape, coordinates), "float64"),
    }


def whole_array(name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> ArraySpec:
    """An array that is one shard of one chunk: the model's matrices, the merged moments."""
    return ArraySpec(name, dims, shape, dtype, shard=shape, chunk=shape)


def create_array(root: zarr.Group, spec: ArraySpec) -> None:
    """Write the metadata of `spec`; its shards are written elsewhere."""
    root.create_array(
        spec.name,
        shape=spec.shape,
        shards=spec.shard,
        chunks=spec.chunk,
        dtype=spec.dtype,
        compressors=None,
        filters=None,
        fill_value=spec.fill,
        dimension_names=list(spec.dims),
    )


def image_bytes(specs: dict[str, ArraySpec]) -> int:
    """Bytes of all row arrays for one image."""
    return sum(spec.row_bytes for spec in specs.values())


def open_group(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    """The store's root group and its `headspan` attributes; StoreError where it is no store of this format."""
    todo = "run headspan repair" if (path / ROOT_COPY).is_file() else "restore it from a copy of the store"
    if not (path / "zarr.json").is_file():
        if (path / RECORDS).is_dir():
            raise StoreError(f"{path / 'zarr.json'}: is missing; {todo}")
        what = "no such folder" if not path.exists() else "is not a headspan store"
        raise StoreError(f"{path}: {what}; give the path that `headspan precompute --out` wrote")
    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
    except UNREADABLE as error:
        if (path / RECORDS).is_dir():
            raise StoreError(f"{path / 'zarr.json'}: is damaged ({one_line(error)}); {todo}") from error
        raise StoreError(f"{path}: is no Zarr group ({one_line(error)}); give the path of a headspan store") from error
    attributes = root.attrs.get("headspan")
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: a Zarr group, but not one of headspan's; give the path of a headspan store")
    found, written_by = attributes.get("format"), attributes.get("version")
    if found != FORMAT:
        raise StoreError(
            f"{path}: format {found}, this headspan reads {FORMAT}; precompute again or use headspan {written_by}"
        )
    for name, kind in _KINDS.items():
        if name in attributes and not isinstance(attributes[name], kind):
            quoted = shortened(repr(attributes[name]), _LONGEST_QUOTE)
            raise StoreError(
                f"{path / 'zarr.json'}: the attribute {name} is {quoted}, which no headspan writes; {todo}"
            )
    return root, attributes


def attributes_of(path: Path) -> dict[str, Any] | None:
    """The attributes of the store at `path`; None where there is no store yet."""
    return open_group(path)[1] if (path / "zarr.json").is_file() else None


def decoding(attributes: dict[str, Any]) -> str:
    """How the store's images became pixels; before there was a choice, they were exact."""
    return str(attributes.get("decode", "exact"))


def member_names(attributes: dict[str, Any]) -> MemberNames:
    """Which members the store's images and captions came from; before they could be named, by their extensions."""
    return MemberNames(*(attributes.get(name) for name in ("image_member", "caption_member", "caption_json")))


def dimensions(attributes: dict[str, Any]) -> Dimensions:
    """The sizes that a store's attributes record."""
    values = dict(attributes["dimensions"])
    return Dimensions(**{**values, **{name: tuple(values[name]) for name in ("layers", "carried")}})
