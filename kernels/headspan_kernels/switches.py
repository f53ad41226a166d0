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


# By compute capability, activation, and whether the map is gated: the kernel's cut, or cuBLASLt's own activation.
# No row has been measured on a GPU yet, so PyTorch computes every map.
LINEAR_ACT: dict[tuple[tuple[int, int], str, bool], Cut | Literal["cublaslt"]] = {}


def linear_act_by(device: torch.device, activation: str, gated: bool) -> Cut | Literal["cublaslt"] | None:
    """What computes `linear_act` on a device; None where PyTorch computes the product and the activation apart."""
    return LINEAR_ACT.get((capability(device), activation, gated))


def capability(device: torch.device) -> tuple[int, int]:
    """The compute capability of a GPU; that of an H100 for tensors that are on none."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
