"""Let the process keep memory that a forward pass on a CPU frees, so that the next pass reuses it.

glibc returns large blocks to the system as soon as they are freed. Every page of the next blocks is then mapped and
zeroed again, which takes a tenth of a pass or more in a virtual machine. PyTorch has no cache for CPU tensors.
"""

from __future__ import annotations

import ctypes

# From <malloc.h>: how much free memory the heap keeps at its top, and how many blocks may be mapped outside it.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory; returns False, and changes nothing, if it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
