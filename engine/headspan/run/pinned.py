"""Pin the memory that a decoder's processes fill, so that it is copied to the GPU without waiting."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8


def pinned(
    device: torch.device, memory: UInt8[np.ndarray, " byte"], on_failure: Callable[[str], None] = lambda note: None
) -> Callable[[], None]:
    """Pin `memory` for transfers to `device`, which is a GPU. Returns what undoes it, before the memory is unmapped.

    If the driver refuses, as with a limit on locked memory, `on_failure` receives a sentence; transfers then work, but
    slowly, and the returned function does nothing.
    """
    runtime = torch.cuda.cudart()
    with torch.cuda.device(device):
        code = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, 0))
    if code != 0:
        on_failure(
            f"the GPU's driver does not pin {memory.nbytes / 1e6:,.0f} MB for decoded images (error {code}), so their "
            "transfer takes more time; raise the limit on locked memory (ulimit -l)"
        )
        return lambda: None

    def unpin() -> None:
        with torch.cuda.device(device):
            try:
                # Transfers from this memory may still be under way.
                torch.cuda.synchronize(device)
            finally:
                runtime.cudaHostUnregister(memory.ctypes.data)

    return unpin
