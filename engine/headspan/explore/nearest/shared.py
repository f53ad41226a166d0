"""Share objects with other processes, which read their arrays from memory files without a copy.

The arrays are pickled out of band (pickle's protocol 5) and written to a memory file. A process that has the file's
descriptor and the rest of the pickled object can read the object; its arrays are read-only.
"""

from __future__ import annotations

import pickle
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from headspan.io.memory import close_file, map_shared, map_to_read, memory_file

T = TypeVar("T")
# Each array begins at a multiple of so many bytes, a line of the processor's cache.
_ALIGNED = 64


@dataclass(frozen=True, slots=True)
class Shared:
    """What another process needs to read an object."""

    # Different for each object of this process.
    number: int
    # Of this process; closed when the object is deleted.
    descriptor: int
    pickled: bytes
    # The first byte of each array in the file, and the one after its last.
    spans: tuple[tuple[int, int], ...]


_numbers = count()
_shared: WeakKeyDictionary[Any, Shared] = WeakKeyDictionary()
_lock = threading.Lock()


def in_shared_memory(value: T) -> T:
    """Return a copy of an object whose arrays are stored in a memory file. `shared` describes it to other processes.

    Raises HeadspanError if the memory is not available.
    """
    arrays: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
    spans, end = [], 0
    for array in arrays:
        begin = -(-end // _ALIGNED) * _ALIGNED
        end = begin + array.raw().nbytes
        spans.append((begin, end))
    descriptor = memory_file(end)
    try:
        if end:
            written = map_shared(descriptor, end)
            for array, (begin, stop) in zip(arrays, spans, strict=True):
                written[begin:stop] = np.frombuffer(array.raw(), np.uint8)
        found: T = from_memory_file(descriptor, pickled, spans)
    except BaseException:
        close_file(descriptor)
        raise
    weakref.finalize(found, close_file, descriptor)
    with _lock:
        _shared[found] = Shared(next(_numbers), descriptor, pickled, tuple(spans))
    return found


def shared(value: object) -> Shared | None:
    """What other processes need to read an object that `in_shared_memory` returned; None for any other object."""
    with _lock:
        return _shared.get(value)


def from_memory_file(descriptor: int, pickled: bytes, spans: Sequence[tuple[int, int]]) -> Any:
    """Read an object whose arrays are stored in a memory file, without a copy. The file may be closed afterwards."""
    size = max((stop for _, stop in spans), default=0)
    memory = map_to_read(descriptor, size) if size else np.zeros(0, np.uint8)
    return pickle.loads(pickled, buffers=[memory[begin:stop] for begin, stop in spans])
