"""The format of a store: its arrays with their shapes, Zarr shards and chunks, and its attributes.

A store is a Zarr v3 group. Rows are images in the order of the plan, and all arrays share them. A unit of work is
a whole number of Zarr shards of every array, so two units never write to the same file. The fill value is NaN,
so that a missing shard never reads as zeros. This module writes metadata, but no numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import UnionType
from typing import Any

import numpy as np
import zarr

from headspan.decompose.formula import EXTRA_COORDINATES
from headspan.errors import StoreError, shortened
from headspan.head_names import Head, head_name, parse_heads
from headspan.io.local import LocalStorage
from headspan.io.locations import Location
from headspan.io.storage import Storage
from headspan.io.stores import storage_at
from headspan.member_names import MEMBER_SETTINGS, MemberNames
from headspan.store.array_spec import ArraySpec
from headspan.store.earlier_words import arrays_as_stored, todays_attributes
from headspan.store.root_faults import RECORDS as RECORDS
from headspan.store.root_faults import ROOT_COPY as ROOT_COPY
from headspan.store.root_faults import root_fault, todo
from headspan.store.zarr_storage import group_at

FORMAT = 1
# Rows in an inner chunk: many if one head is read over all images, one if the patches of one image are read.
_CHUNK_ROWS = {"heads": 4096, "patches": 1, "through_pool": 256}
# The most bytes of a row of chunks, which is filled in memory. A single row of the array may have more.
_ROW_OF_CHUNKS_BYTES = 64 << 20
# The axes along which an inner chunk has length 1: a head is read without its neighbours, and the patches of one image
# and layer are in one chunk.
_APART = {"heads": ("layer", "head"), "patches": ("layer",), "through_pool": ("through_pool_layer", "trunk_head")}
_DEFAULT_CHUNK_ROWS = 64
_SHARD_BYTES = 256 << 20
# The types of the root attributes that are needed to read the arrays and to load the model.
_KINDS: dict[str, type | UnionType] = {
    **dict.fromkeys(("model", "weights_sha256", "text_sha256", "precision", "decode"), str),
    **dict.fromkeys(("model_config", "preprocess", "dimensions", "made_with", "tower", "sum"), dict),
    "pretrained": str | None,
    "image_size": int | None,
    "emit": list,
    "without": list,
}
_LONGEST_QUOTE = 60
# The sum and the Gram matrix of the unit embeddings, in the group `moments`.
EMBEDDING_MOMENTS = ("embedding_sum", "embedding_gram")
# What zarr raises if the metadata of an array are damaged.
UNREADABLE = (ValueError, TypeError, KeyError, ArithmeticError)


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes that determine the shape of every array.

    `layers` are the stored layers whose heads write to the embedding; `through_pool` are the stored layers whose heads
    reach it through an attention pooling; `all_layers` is the number of the model's layers.
    """

    images: int
    unit_images: int
    layers: tuple[int, ...]
    all_layers: int
    # How many of the last layers have heads that write to the embedding.
    direct_layers: int
    heads: int
    head_dim: int
    # Source tokens of a layer in `layers`; the first `prefix_tokens` of them are not patches.
    tokens: int
    prefix_tokens: int
    joint: int
    # Terms other than heads and biases.
    terms: int
    through_pool: tuple[int, ...] = ()
    through_pool_heads: int = 0


def row_arrays(size: Dimensions, emit: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return the arrays that have one row for each image, by their name in `emit` or their own name."""
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
    if "through_pool" in emit:
        shape = (len(size.through_pool), size.through_pool_heads, joint)
        axes["through_pool"] = (("through_pool_layer", "trunk_head", "joint"), shape, "float16")
    return {name: _row_spec(name, *spec, size) for name, spec in axes.items()}


def stored_row_arrays(root: zarr.Group, size: Dimensions, emit: tuple[str, ...]) -> dict[str, ArraySpec]:
    """Return `row_arrays` of the store `root` with the names, shards and chunks that it was planned with.

    An array whose metadata are damaged, or contradict the attributes, is returned as it would be planned now;
    `refuse_unlike` prevents writing to it.
    """
    found = {}
    for name, spec in arrays_as_stored(row_arrays(size, emit), _stored_attributes(root)).items():
        try:
            found[name] = _as_stored(spec, root[spec.name], size.unit_images)
        except UNREADABLE:
            found[name] = spec
    return found


def refuse_unlike(path: Location, specs: dict[str, ArraySpec], unit_images: int) -> None:
    """Raise StoreError if the metadata of an array of the store at `path` are damaged or differ from `specs`."""
    root = group_at(storage_at(path))
    for spec in specs.values():
        try:
            alike = _as_stored(spec, root[spec.name], unit_images) == spec
        except UNREADABLE:
            alike = False
        if not alike:
            raise StoreError(
                f"{path / spec.name / 'zarr.json'}: differs from the plan; run headspan repair; if that does not "
                "help, restore it from a copy of the store"
            )


def _as_stored(spec: ArraySpec, array: zarr.Array[Any] | zarr.Group, unit_images: int) -> ArraySpec:
    """Return `spec` with the shards and chunks of `array`. Raises ValueError if they do not fit such a store."""
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
    """Return the arrays of the merged moments, by their name in the group `moments`.

    Stores of earlier versions do not have those of EMBEDDING_MOMENTS.
    """
    dims, joint = ("layer", "head", "coordinate"), size.joint
    coordinates = size.head_dim + EXTRA_COORDINATES
    shape = (len(size.layers), size.heads, coordinates)
    return {
        "count": whole_array("moments/count", ("scalar",), (1,), "int64"),
        "sum": whole_array("moments/sum", dims, shape, "float64"),
        "gram": whole_array("moments/gram", (*dims, "coordinate_2"), (*shape, coordinates), "float64"),
        "embedding_sum": whole_array("moments/embedding_sum", ("joint",), (joint,), "float64"),
        "embedding_gram": whole_array("moments/embedding_gram", ("joint", "joint_2"), (joint, joint), "float64"),
    }


def whole_array(name: str, dims: tuple[str, ...], shape: tuple[int, ...], dtype: str) -> ArraySpec:
    """Return an array that is one shard of one chunk: a matrix of the model, or merged moments."""
    return ArraySpec(name, dims, shape, dtype, shard=shape, chunk=shape)


def create_array(root: zarr.Group, spec: ArraySpec) -> None:
    """Write the metadata of an array, but no shards."""
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
    """Return the bytes that all row arrays take for one image."""
    return sum(spec.row_bytes for spec in specs.values())


def open_group(path: Location, storage: Storage | None = None) -> tuple[zarr.Group, dict[str, Any]]:
    """Return the root group of a store and its `headspan` attributes in today's words. `storage` is that of `path`.

    Raises StoreError if `path` is not a store of this format.
    """
    storage = storage or storage_at(path)
    try:
        if isinstance(storage, LocalStorage) and storage.size("zarr.json") is None:
            raise FileNotFoundError
        root = group_at(storage)
    except (FileNotFoundError, *UNREADABLE) as error:
        raise root_fault(path, storage, error) from error
    attributes = _stored_attributes(root)
    if not isinstance(attributes, dict):
        raise StoreError(f"{path}: is a Zarr group, but not a headspan store; give the path of a headspan store")
    found, written_by = attributes.get("format"), attributes.get("version")
    if found != FORMAT:
        raise StoreError(
            f"{path}: format {found}, this headspan reads {FORMAT}; precompute again or use headspan {written_by}"
        )
    for name, kind in _KINDS.items():
        if name in attributes and not isinstance(attributes[name], kind):
            quoted = shortened(repr(attributes[name]), _LONGEST_QUOTE)
            raise StoreError(
                f"{path / 'zarr.json'}: the attribute {name} is {quoted}, which headspan does not write; "
                f"{todo(storage)}"
            )
    return root, todays_attributes(attributes)


def _stored_attributes(root: zarr.Group) -> Any:
    return root.attrs.get("headspan")


def attributes_of(path: Location) -> dict[str, Any] | None:
    """Return the attributes of the store at `path`, in today's words; None if there is no store yet."""
    storage = storage_at(path)
    return open_group(path, storage)[1] if storage.size("zarr.json") is not None else None


def decoding(attributes: dict[str, Any]) -> str:
    """Return how images were decoded; older stores, which do not say so, were decoded exactly."""
    return str(attributes.get("decode", "exact"))


def without_heads(attributes: Mapping[str, Any]) -> list[Head]:
    """Return the heads that write nothing in the store's model, (layer, head); none in older stores."""
    return parse_heads(attributes.get("without", ()), "the store's attribute without")


def names_without(attributes: Mapping[str, Any], between: str = ", ") -> str:
    """Return the names of these heads as text, with `between` between them; empty if there are none."""
    return between.join(head_name(*head) for head in without_heads(attributes))


def member_names(attributes: dict[str, Any]) -> MemberNames:
    """Return which members of the shards are images and captions; in older stores their extensions decide."""
    return MemberNames(*(attributes.get(name) for name in MEMBER_SETTINGS))


def dimensions(attributes: dict[str, Any]) -> Dimensions:
    """Return the sizes in a store's attributes, which must be in today's words."""
    values = dict(attributes["dimensions"])
    return Dimensions(**{**values, **{name: tuple(values[name]) for name in ("layers", "through_pool")}})
