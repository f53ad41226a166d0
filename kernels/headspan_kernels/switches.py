"""Which kernels are in use: those whose row of `python -m benchmarks.gpu --only ops` on a GPU is faster than PyTorch's.

A kernel without an entry here is not used: it is not yet measured, or PyTorch is faster. An entry names the cut that
was the fastest. The GPU's compute capability and the arguments decide, never timing, so the same input gives the same
bits.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch


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


# By compute capability, head dimension, tokens, and whether the pooled row is a mean: the blocks of attention's rows.
# An H100 takes 0.472 ms for ViT-H/14 (batch 128) with three steps in flight, and 0.583 with two. For other shapes, no
# other blocks than `attention.candidates`' first ones have been measured with the present kernels.
ATTENTION: dict[tuple[tuple[int, int], int, int, bool], Blocks] = {((9, 0), 80, 257, False): Blocks(64, 32, 4, 3)}
# By compute capability, activation, and whether the map is gated: the kernel's cut, or cuBLASLt's own activation.
# No row has been measured on a GPU yet, so PyTorch computes every map.
LINEAR_ACT: dict[tuple[tuple[int, int], str, bool], Cut | Literal["cublaslt"]] = {}


# The compute capabilities at which a tower's 16-bit pass runs as a CUDA graph. An H100 takes 86.7 ms for ViT-L/14 as a
# graph and 85.7 without; smaller models have not been measured.
TOWER_GRAPH: set[tuple[int, int]] = set()


def tower_graph(device: torch.device) -> bool:
    """Whether a pass in 16 bits runs as a CUDA graph on a device."""
    return device.type == "cuda" and capability(device) in TOWER_GRAPH


def attention_by(device: torch.device, head_dim: int, tokens: int, mean_pooled: bool) -> Blocks | None:
    """The blocks that were measured to be the fastest for 16-bit rows; None where nothing was measured."""
    return ATTENTION.get((capability(device), head_dim, tokens, mean_pooled))


def linear_act_by(device: torch.device, activation: str, gated: bool) -> Cut | Literal["cublaslt"] | None:
    """What computes `linear_act` on a device; None where PyTorch computes the product and the activation apart."""
    return LINEAR_ACT.get((capability(device), activation, gated))


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; that of an H100 for tensors that are on none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
