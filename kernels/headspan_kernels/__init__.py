"""The ops that towers and moments run on: `ops(device)` returns the module that serves a device.

Every module has the same names and signatures, which `reference` specifies in plain PyTorch. `onednn` is for CPUs.
`fused` is for CUDA; it needs Triton and is imported for CUDA only.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from headspan_kernels import onednn, reference


def ops(device: torch.device) -> ModuleType:
    """The ops for `device`: Triton's on CUDA, oneDNN's on a CPU, and the reference where these are not installed."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return import_module("headspan_kernels.fused")
    return onednn if device.type == "cpu" and onednn.available() else reference
