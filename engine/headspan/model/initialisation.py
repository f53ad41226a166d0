"""Build modules without initialising their weights at random.

Constructors initialise every weight at random. For weights that are loaded afterwards, or that have no numbers, this is
the largest part of the work.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# What draws, or works on what was drawn. Constants (`ones_`, `zeros_`) are written as usual.
_SKIPPED = (
    Tensor.uniform_,
    Tensor.normal_,
    Tensor.erfinv_,
    Tensor.clamp_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
)


class NoInitialisation(TorchFunctionMode):
    """In this context of this thread, weights keep the arbitrary numbers of their memory instead of random ones.

    Buffers that constructors compute are right, since only random initialisation is skipped.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SKIPPED:
            # `nn.init` passes its tensor on by name.
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
