"""Which kernels and cuts are in use: those whose recorded row of `python -m benchmarks.gpu` on a GPU is the fastest.

Each table maps a GPU's compute capability, the type, and the shape of a call to what computes it. The file
`switched_on.json` beside this module fills them. It names the recorded row of each entry, and `python -m
benchmarks.gpu_switches` writes it from those rows. A kernel without an entry is not yet measured, or PyTorch is
faster. Capability and arguments decide, never timing, so the same input gives the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

Capability = tuple[int, int]


class Cut(NamedTuple):
    """Sizes of a matrix product's launch.

    Rows and columns of a tile, numbers of the inner dimension per step, warps, steps in flight, and programs that share
    a multiprocessor.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    programs: int


class Blocks(NamedTuple):
    """Block sizes of an attention launch.

    Query rows and keys per step, warps, steps in flight, whether a program keeps all keys and values of its head, and
    the registers that a thread may have.
    """

    rows: int
    keys: int
    warps: int
    stages: int
    whole: bool = False
    registers: int = 255


class Tiles(NamedTuple):
    """Sizes of a launch of moments.

    Rows and columns of a tile, images per step, warps, steps in flight, and registers per thread.
    """

    side: int
    images: int
    warps: int
    stages: int
    registers: int


# Blocks that were measured before rows had keys: an H100 takes 0.472 ms for ViT-H/14 (batch 128) with three steps in
# flight, and 0.583 with two.
BY_HAND: dict[tuple[Capability, str, int, int, bool], Blocks] = {
    ((9, 0), kind, 80, 257, False): Blocks(64, 32, 4, 3) for kind in ("bfloat16", "float16")
}
# By capability, type, head dimension, tokens, and whether the pooled row is a mean: the blocks of attention's rows, or
# the reference where PyTorch is faster. Without an entry, `attention.candidates`' first blocks.
ATTENTION: dict[tuple[Capability, str, int, int, bool], Blocks | Literal["reference"]] = {}
# By capability, type, activation, whether the map is gated, and columns before and after: the kernel's cut, or
# cuBLASLt's own activation. Without an entry, PyTorch computes the product and the activation apart.
LINEAR_ACT: dict[tuple[Capability, str, str, bool, int, int], Cut | Literal["cublaslt"]] = {}
# By capability and head dimension: tiles, or the reference where PyTorch is faster. Without an entry,
# `moments.candidates`' first tiles.
MOMENTS: dict[tuple[Capability, int], Tiles | Literal["reference"]] = {}
# By capability, type, width, layers and tokens: the towers whose pass runs as a CUDA graph. An H100 takes 86.7 ms for
# ViT-L/14 as a graph and 85.7 without.
TOWER_GRAPH: dict[tuple[Capability, str, int, int, int], Literal[True]] = {}
# By the same: the towers whose blocks' products add to the residual stream in place.
SUMS_IN_PRODUCTS: dict[tuple[Capability, str, int, int, int], Literal[True]] = {}

# What an entry's numbers are.
_TABLES: dict[str, tuple[dict[Any, Any], Any]] = {
    "ATTENTION": (ATTENTION, Blocks),
    "LINEAR_ACT": (LINEAR_ACT, Cut),
    "MOMENTS": (MOMENTS, Tiles),
    "TOWER_GRAPH": (TOWER_GRAPH, None),
    "SUMS_IN_PRODUCTS": (SUMS_IN_PRODUCTS, None),
}
SWITCHED_ON = Path(__file__).with_name("switched_on.json")


def switch_on(entries: list[dict[str, Any]]) -> None:
    """Let the tables hold these entries, as `switched_on.json` holds them, and those by hand."""
    for table, _ in _TABLES.values():
        table.clear()
    ATTENTION.update(BY_HAND)
    for entry in entries:
        table, sizes = _TABLES[entry["table"]]
        value = entry["value"]
        table[key_of(entry["key"])] = sizes(*value) if isinstance(value, list) else value


def switch(table: str, key: tuple[Any, ...], on: bool) -> None:
    """Switch a key of a table that holds nothing but True on or off."""
    _TABLES[table][0].pop(key, None)
    if on:
        _TABLES[table][0][key] = True


@contextmanager
def restored() -> Iterator[None]:
    """Restore the tables afterwards."""
    held = [(table, dict(table)) for table, _ in _TABLES.values()]
    try:
        yield
    finally:
        for table, entries in held:
            table.clear()
            table.update(entries)


@contextmanager
def without_entries() -> Iterator[None]:
    """Within it, nothing is switched on but what is by hand."""
    with restored():
        switch_on([])
        yield


def key_of(parts: list[Any]) -> tuple[Any, ...]:
    """A key of a table from its JSON, whose first part is the compute capability."""
    return tuple(parts[0]), *parts[1:]


def tower_key(
    device: torch.device, dtype: torch.dtype, width: int, layers: int, tokens: int
) -> tuple[Capability, str, int, int, int]:
    """The key of a tower in `TOWER_GRAPH` and `SUMS_IN_PRODUCTS`."""
    return capability(device), name_of(dtype), width, layers, tokens


def tower_graph(device: torch.device, dtype: torch.dtype, width: int, layers: int, tokens: int) -> bool:
    """Whether a tower's pass runs as a CUDA graph on a device."""
    return device.type == "cuda" and tower_key(device, dtype, width, layers, tokens) in TOWER_GRAPH


def sums_in_products(device: torch.device, dtype: torch.dtype, width: int, layers: int, tokens: int) -> bool:
    """Whether the products of a tower's blocks add to the residual stream on a device."""
    return device.type == "cuda" and tower_key(device, dtype, width, layers, tokens) in SUMS_IN_PRODUCTS


def attention_by(
    device: torch.device, dtype: torch.dtype, head_dim: int, tokens: int, mean_pooled: bool
) -> Blocks | Literal["reference"] | None:
    """What was measured to be the fastest for rows of this shape; None where nothing was measured."""
    return ATTENTION.get((capability(device), name_of(dtype), head_dim, tokens, mean_pooled))


def linear_act_by(
    device: torch.device, dtype: torch.dtype, activation: str, gated: bool, inner: int, out: int
) -> Cut | Literal["cublaslt"] | None:
    """What computes `linear_act` on a device; None where PyTorch computes the product and the activation apart."""
    return LINEAR_ACT.get((capability(device), name_of(dtype), activation, gated, inner, out))


def moments_by(device: torch.device, head_dim: int) -> Tiles | Literal["reference"] | None:
    """What was measured to be the fastest for moments of such heads; None where nothing was measured."""
    return MOMENTS.get((capability(device), head_dim))


def capability(device: torch.device) -> Capability:
    """The compute capability of a GPU; that of an H100 for tensors that are on none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def name_of(dtype: torch.dtype) -> str:
    """A type's name in a key."""
    return str(dtype).removeprefix("torch.")


switch_on(json.loads(SWITCHED_ON.read_text(encoding="utf-8")))
