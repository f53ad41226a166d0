"""What is kept for an object is forgotten when the object is deleted, even while a thread uses what is kept."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headspan.forgetting import Forgetting
from headspan.io.local import LocalStorage
from headspan.io.passing import PassingStorage
from headspan.io.sparse_files import FilesInMemory, SparseFiles


class _Zeros(PassingStorage):
    """Files of 700 bytes."""

    def __init__(self) -> None:
        super().__init__(LocalStorage(Path()))

    def get_range(self, key: str, start: int, size: int) -> bytes:
        return bytes(min(size, 700 - start))


class _Owner:
    """In a cycle, so that only a collection of garbage deletes it."""

    def __init__(self) -> None:
        self.self = self


def done_in_time(work: Callable[[], object]) -> bool:
    """Whether `work` ends, in a thread of its own."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    return not thread.is_alive()


def test_an_object_that_is_deleted_while_the_lock_is_held_is_forgotten_by_the_next_user() -> None:
    lock, forgotten = threading.Lock(), list[str]()
    forgetting = Forgetting(lock, forgotten.append)
    forgetting.watch(_Owner(), "at once")
    gc.collect()
    assert forgotten == ["at once"]
    forgetting.watch(_Owner(), "later")

    def collect() -> None:
        with lock:
            gc.collect()
            assert forgotten == ["at once"]
            forgetting.forget_deleted()

    assert done_in_time(collect)
    assert forgotten == ["at once", "later"]
    assert not lock.locked()


def test_files_of_a_store_that_is_closed_while_files_are_looked_up_are_dropped() -> None:
    memory = FilesInMemory()
    files, numbers = SparseFiles(_Zeros(), memory), np.array([[0, 700]])
    files.content_of = lambda key, own=files: key  # type: ignore[misc]
    files.read("a", 700, numbers)
    assert memory.bytes == 700
    del files

    def collect() -> None:
        with memory._lock:
            gc.collect()

    assert done_in_time(collect)
    again = SparseFiles(_Zeros(), memory)
    again.read("b", 700, numbers)
    assert memory.bytes == 700
