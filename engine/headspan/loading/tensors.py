"""Read arrays straight into tensors; in a DataLoader's worker into shared memory, where its batches go."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from headspan.loading.columns import Allocate

# Every type of an array that a store holds.
_TORCH_TYPES = {name: getattr(torch, name) for name in ("float16", "float32", "int64")}
# Columns by name, `[image, …]`.
Batch = dict[str, Tensor]


def as_tensors(read: Callable[[Allocate], dict[str, np.ndarray]]) -> Batch:
    """Return the columns that `read` reads as tensors; `read` is called with a function that allocates their arrays."""
    make = _shared if get_worker_info() is not None else torch.empty
    made: dict[int, Tensor] = {}

    def allocate(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        tensor = make(shape, dtype=_TORCH_TYPES[dtype.name])
        values: np.ndarray = tensor.numpy()
        # By address, since a tensor that is made from an array would not count as shared.
        made[values.ctypes.data] = tensor
        return values

    return {name: made.get(values.ctypes.data, torch.from_numpy(values)) for name, values in read(allocate).items()}


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor in shared memory, which another process reads without a copy."""
    elements = math.prod(shape)
    storage = torch.UntypedStorage._new_shared(elements * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, 0, (elements,), (1,)).reshape(shape)
