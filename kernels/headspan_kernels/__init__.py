"""headspan's ops: `ops(device)` returns the module that runs them on that device.

Every module has the same names and signatures; `reference` is their specification, in plain PyTorch.
"""

from types import ModuleType

import torch

from headspan_kernels import reference


def ops(device: torch.device) -> ModuleType:
    """The ops to run on `device`: today the reference everywhere."""
    return reference
