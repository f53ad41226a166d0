"""Memory that a CPU pass frees stays with the process, for the next pass to use.

glibc gives large blocks back to the system as soon as they are freed, and every page of the next ones is faulted in and
zeroed anew: in a virtual machine a tenth of a pass and more. PyTorch has no cache of its own for CPU tensors.
"""

from __future__ import annotations

import ctypes

# Of <malloc.h>: free memory at the top of the heap that is kept, and how many blocks may be mapped apart from it.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask the C library to keep what is freed; False where it is not glibc, and nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))
