"""headspan's ops: `ops(device)` returns the module that runs them on that device.

Every module has the same names and signatures; `reference` is their specification, in plain PyTorch. `fused`,
for CUDA, is Triton's and imported there alone; `onednn` is for CPUs.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from headspan_kernels import onednn, reference


def ops(device: torch.device) -> ModuleType:
    """The ops to run on `device`: on CUDA with Triton, on a CPU with oneDNN, and the reference elsewhere."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return import_module("headspan_kernels.fused")
    return onednn if device.type == "cpu" and onednn.available() else reference
