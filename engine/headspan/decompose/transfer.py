"""Copy tensors from a GPU to pinned host memory on a separate stream, without waiting.

The next batch's kernels run while the last batch's numbers are copied. On a CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Transfer:
    """Tensors that are being copied to the host, by name; `arrays` waits for them."""

    tensors: dict[str, Tensor]
    # Recorded after the last copy; None if there was nothing to copy.
    done: torch.cuda.Event | None

    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors as NumPy arrays, once they have arrived."""
        if self.done is not None:
            self.done.synchronize()
        return {name: tensor.numpy() for name, tensor in self.tensors.items()}


def to_host(tensors: Mapping[str, Tensor], device: torch.device) -> Transfer:
    """Start copying `tensors`, which are on `device` and must not be written to afterwards."""
    if device.type != "cuda":
        return Transfer({name: tensor.cpu() for name, tensor in tensors.items()}, None)
    stream = _stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    arrived = {}
    with torch.cuda.stream(stream):
        for name, tensor in tensors.items():
            arrived[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            arrived[name].copy_(tensor, non_blocking=True)
            # The allocator must not reuse its memory before the copy has finished.
            tensor.record_stream(stream)
        done = torch.cuda.Event()
        done.record(stream)
    return Transfer(arrived, done)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
