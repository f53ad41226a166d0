"""What an export holds: the chosen arrays, layers and heads, as series of numbers with a name for each image.

A series is one head, one term or one array without such an axis. Its numbers are those of `Store`: what is stored, in
the stored type, or contributions in convention `uniform`, divided by the length of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headspan.config import as_ranges
from headspan.decompose.formula import head_coordinates
from headspan.errors import SettingsError
from headspan.head_names import head_name
from headspan.store.coordinates import coordinates
from headspan.store.earlier_words import todays_axes
from headspan.store.head_space import stored_heads
from headspan.store.reader import Store

CONTRIBUTIONS = "contributions"
# The most bytes of a block of rows, in the type in which it is written.
_BLOCK_BYTES = 64 << 20
# Blocks are whole chunks of most arrays.
_CHUNK_ROWS = 64
# The letter of a position along an axis, as in L10_H3.
_LETTERS = {"layer": "L", "through_pool_layer": "L", "head": "H", "trunk_head": "H", "term": "T"}

Head = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Series:
    """The numbers of one name: `read(first_row, end)` returns those of a span of rows, `[row, *shape]`."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    dtype: np.dtype[np.generic]
    read: Callable[[int, int], np.ndarray]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen series by array, in the order of their names; `places` names the positions that they stand for."""

    array: str
    # Axes that the series are positions along, with their numbers: one for each axis, or one for pairs of both.
    places: tuple[tuple[str, list[str] | list[int]], ...]
    series: tuple[Series, ...]


def chosen_heads(store: Store, layers: Sequence[int] | None, heads: Sequence[Head] | None) -> list[Head]:
    """Return layer and head of the chosen heads, in the order of the store. Raises SettingsError if one is not stored.

    `layers` limits them to these layers; `heads` names them one by one.
    """
    if layers is not None and heads:
        raise SettingsError("--layers and --head both choose heads; give one of them")
    for layer in layers if layers is not None else ():
        store.contents.layer_index(layer)
    for layer, head in heads or ():
        store.contents.layer_index(layer, head)
    every = stored_heads(store)
    if heads:
        return [each for each in every if each in {(int(layer), int(head)) for layer, head in heads}]
    return [each for each in every if layers is None or each[0] in layers]


def chosen(
    store: Store, arrays: Sequence[str], layers: Sequence[int] | None, heads: Sequence[Head] | None
) -> list[Choice]:
    """Return the series of the chosen arrays. Raises SettingsError for arrays, layers or heads that are not stored."""
    offered = [*store.contents.specs, CONTRIBUTIONS]
    unknown = [name for name in arrays if name not in offered]
    if unknown or not arrays:
        raise SettingsError(
            f"--arrays {','.join(unknown)}: {store.path} holds no such array; choose from {', '.join(offered)}"
        )
    picked = chosen_heads(store, layers, heads)
    if not picked:
        raise SettingsError(f"--layers names no layer; stored are {as_ranges(store.layers)}")
    found = []
    for name in dict.fromkeys(arrays):
        if name == CONTRIBUTIONS:
            series = tuple(_contributions(store, *head) for head in picked)
            found.append(Choice(name, _head_places(store, picked, bool(heads)), series))
        elif name in ("heads", "patches"):
            series = tuple(_of_head(store, name, *head) for head in picked)
            found.append(Choice(name, _head_places(store, picked, bool(heads)), series))
        else:
            found.append(_other(store, name))
    return found


def blocks(store: Store, choices: Sequence[Choice], float32: bool = False) -> Iterator[np.ndarray]:
    """Yield the rows of the images that `store` shows, in blocks that take at most 64 MiB in memory when written.

    At least one row is in a block. `float32` says that 16-bit numbers are written in 32 bits.
    """
    series = [each for choice in choices for each in choice.series]
    row_bytes = sum(each.row_bytes * (2 if float32 and each.dtype == np.float16 else 1) for each in series)
    rows = max(1, min(1 << 20, _BLOCK_BYTES // max(1, row_bytes)))
    rows -= rows % _CHUNK_ROWS if rows > _CHUNK_ROWS else 0
    # A block begins with a multiple of its length, so that it begins with a chunk.
    borders = np.searchsorted(store.rows, np.arange(rows, store.planned_images, rows))
    yield from (part for part in np.split(store.rows, borders) if len(part))


def values(series: Series, rows: np.ndarray) -> np.ndarray:
    """Return the numbers of ascending rows."""
    first, end = int(rows[0]), int(rows[-1]) + 1
    found = series.read(first, end)
    return found if len(rows) == end - first else found[rows - first]


def _head_places(store: Store, picked: Sequence[Head], by_name: bool) -> tuple[tuple[str, list[str] | list[int]], ...]:
    if by_name:
        return (("head", [head_name(layer, head) for layer, head in picked]),)
    layers = list(dict.fromkeys(layer for layer, _ in picked))
    return ("layer", layers), ("head", list(range(store.heads_per_layer)))


def _of_head(store: Store, name: str, layer: int, head: int) -> Series:
    spec, index = store.contents.specs[name], store.contents.layer_index(layer, head)
    axes = todays_axes(spec.dims)[3:]

    def read(first: int, end: int) -> np.ndarray:
        return store.contents.block(name, first, end, index, head)

    return Series(f"{name}_L{layer}_H{head}", spec.shape[3:], axes, np.dtype(spec.dtype), read)


def _contributions(store: Store, layer: int, head: int) -> Series:
    contents, index = store.contents, store.contents.layer_index(layer, head)
    directions = store.head_directions(layer, head)

    def read(first: int, end: int) -> np.ndarray:
        outputs = contents.block("heads", first, end, index, head).astype(np.float32)
        norm = contents.block("norm", first, end)
        return head_coordinates(outputs, norm, normalised=True) @ directions

    return Series(f"{CONTRIBUTIONS}_L{layer}_H{head}", (store.joint,), ("joint",), np.dtype(np.float32), read)


def _other(store: Store, name: str) -> Choice:
    """Return the series of an array that has no axis of the stored heads."""
    contents, spec = store.contents, store.contents.specs[name]
    axes = todays_axes(spec.dims)[1:]
    split = [axis for axis in axes if axis in (*_LETTERS, "statistic")]
    # In the order of the axes, of which these come first.
    known = coordinates(contents.size, split)
    places = [(axis, known[axis].tolist()) for axis in split]
    dtype, rest = np.dtype(spec.dtype), len(split)
    series = []
    for index in np.ndindex(*spec.shape[1 : 1 + rest]):
        parts = [f"{_LETTERS.get(axis, '')}{names[place]}" for (axis, names), place in zip(places, index, strict=True)]
        label = "_".join([name, *parts])

        def read(first: int, end: int, index: tuple[int, ...] = index) -> np.ndarray:
            return contents.block(name, first, end, *index)

        series.append(Series(label, spec.shape[1 + rest :], axes[rest:], dtype, read))
    return Choice(name, tuple(places), tuple(series))
