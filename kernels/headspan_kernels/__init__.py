"""headspan's ops: `ops(device)` returns the module that runs them on that device.

Every module has the same names and signatures; `reference` is their specification, in plain PyTorch. `fused`,
for CUDA, is Triton's and imported there alone.
"""

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from headspan_kernels import reference


def ops(device: torch.device) -> ModuleType:
    """The ops to run on `device`: fused on CUDA where Triton is installed, the reference elsewhere."""
    if device.type == "cuda" and find_spec("triton") is not None:
        return import_module("headspan_kernels.fused")
    return reference
