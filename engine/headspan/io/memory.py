"""Memory files: memory that several processes share through an inherited descriptor.

A memory file has no name and is freed with its last descriptor and mapping. It does not depend on the size of
`/dev/shm`. Where the system has no memory files, it is a temporary file without a name.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
from jaxtyping import UInt8

from headspan.errors import HeadspanError

_ZEROS = bytes(1 << 20)
# Files that a process may need beside those that it shares: shards, stores, libraries.
_OTHER_FILES = 256


def untouched(size: int) -> UInt8[np.ndarray, " size"]:
    """Zeros that take memory only where they are written, by pages of the smallest size."""
    memory = mmap.mmap(-1, max(1, size))
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        # A huge page would take 2 MB where 16 KB are written.
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8, size)


def memory_file(size: int = 0) -> int:
    """The descriptor of a new memory file of `size` bytes, all of them reserved.

    Raises HeadspanError if the memory cannot be had. Without the reservation, a process that writes to the memory
    would end with a bus error.
    """
    with opening():
        descriptor = _unnamed_file()
    try:
        reserve(descriptor, size)
    except HeadspanError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opening() -> Iterator[None]:
    """Turn an OSError into a HeadspanError: the files that processes share cannot be opened."""
    try:
        yield
    except OSError as error:
        raise HeadspanError(
            f"memory that processes share cannot be had ({error.strerror}); give fewer --workers, or raise the limit "
            "on open files (ulimit -n)"
        ) from error


def allow_open_files(more: int) -> None:
    """Let this process open so many more files, if it may raise its own limit so far."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    # A system may refuse; opening a file then fails, and says what to do.
    with suppress(OSError, ValueError):
        wanted = len(os.listdir("/dev/fd")) + more + _OTHER_FILES  # noqa: PTH208
        if hard != resource.RLIM_INFINITY:
            wanted = min(wanted, hard)
        if wanted > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def reserve(descriptor: int, size: int) -> None:
    """Give an empty memory file `size` bytes. Raises HeadspanError if the memory cannot be had."""
    try:
        _reserve(descriptor, size)
    except OSError as error:
        raise HeadspanError(
            f"{size / 1e6:,.0f} MB of memory for decoded images cannot be reserved ({error.strerror}); give a smaller "
            "--batch-size, or free memory"
        ) from error


def write_at(descriptor: int, data: bytes, position: int) -> None:
    """Write `data` to a memory file, which grows. Raises HeadspanError if the memory cannot be had."""
    try:
        with memoryview(data) as left:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, left[written:], position + written)
    except OSError as error:
        raise HeadspanError(
            f"{len(data) / 1e6:,.1f} MB of memory for encoded images cannot be had ({error.strerror}); give fewer "
            "--workers, or free memory"
        ) from error


def empty_file(descriptor: int) -> None:
    """Free the memory of a memory file, and let what is written next begin at its beginning."""
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)


def close_file(descriptor: int) -> None:
    """Close a memory file. Mappings of it stay valid."""
    os.close(descriptor)


def map_shared(descriptor: int, size: int) -> UInt8[np.ndarray, " byte"]:
    """The first `size` bytes of a memory file, shared with all processes that map it; unmapped with the last view."""
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)


def map_to_read(descriptor: int, size: int) -> UInt8[np.ndarray, " byte"]:
    """The first `size` bytes of a memory file, which this mapping cannot change; unmapped with the last view."""
    return np.frombuffer(mmap.mmap(descriptor, size, prot=mmap.PROT_READ), np.uint8)


@contextmanager
def locked(descriptor: int, number: int) -> Iterator[None]:
    """Hold lock `number` of a memory file. The system releases the locks of a process that ends.

    A lock belongs to a process: its threads do not exclude one another.
    """
    lock(descriptor, number)
    try:
        yield
    finally:
        unlock(descriptor, number)


def lock(descriptor: int, number: int) -> None:
    """Wait for lock `number` of a memory file."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, number)


def unlock(descriptor: int, number: int) -> None:
    """Release lock `number` of a memory file."""
    fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, number)


def _unnamed_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("headspan", os.MFD_CLOEXEC)
    descriptor, path = tempfile.mkstemp(prefix="headspan-")
    os.unlink(path)  # noqa: PTH108
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    if not size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    for start in range(0, size, len(_ZEROS)):
        os.pwrite(descriptor, _ZEROS[: size - start], start)
