"""Let all threads of the server share one heap, so that its memory does not grow with the number of its answers.

By default glibc gives each thread a heap of its own, and takes blocks of up to 32 MB from it once such blocks have been
freed. An answer takes several arrays of some megabytes, and what one thread has kept is freed by another, so every heap
is left with holes of its own. In one heap, the next answer of any thread fills them. Larger blocks, such as sketches,
are mapped alone and returned to the system when they are freed.
"""

from __future__ import annotations

import ctypes

# From <malloc.h>: how much free memory the heap keeps at its top, which blocks are mapped alone, the number of heaps.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# An array of eight bytes for each of 1,000,000 images is part of the heap.
_LARGEST_BLOCK, _FREE_AT_TOP = 16 << 20, 128 << 20


def share_one_heap() -> bool:
    """Ask the C library for it, before threads are started; returns False if it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGEST_BLOCK), (_M_TRIM_THRESHOLD, _FREE_AT_TOP))
    return all(mallopt(name, value) for name, value in settings)
