"""Tests of pinned memory with a stand-in for the GPU's driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from headspan.errors import HeadspanError
from headspan.io import memory as memory_module
from headspan.io.memory import map_shared, memory_file
from headspan.run.pinned import pinned

DEVICE = torch.device("cuda", 1)


class Driver:
    """Records calls in order; registering fails with `code`."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.calls: list[tuple[object, ...]] = []
        self.device: torch.device | None = None

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802
        assert self.device == DEVICE
        self.calls.append(("register", address, size, flags))
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        assert self.device == DEVICE
        self.calls.append(("unregister", address))
        return 0


def install(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        driver.device = device
        yield
        driver.device = None

    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: driver.calls.append(("synchronize", device)))


def test_memory_is_registered_and_unregistered_after_all_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    install(monkeypatch, driver)
    memory = np.zeros(4096, np.uint8)
    unpin = pinned(DEVICE, memory, pytest.fail)
    assert driver.calls == [("register", memory.ctypes.data, 4096, 0)]
    unpin()
    assert driver.calls[1:] == [("synchronize", DEVICE), ("unregister", memory.ctypes.data)]


def test_memory_is_unregistered_even_if_the_transfers_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    install(monkeypatch, driver)

    def fail(device: torch.device) -> None:
        raise RuntimeError("the kernel failed")

    monkeypatch.setattr(torch.cuda, "synchronize", fail)
    memory = np.zeros(4096, np.uint8)
    with pytest.raises(RuntimeError, match="the kernel failed"):
        pinned(DEVICE, memory, pytest.fail)()
    assert driver.calls[1:] == [("unregister", memory.ctypes.data)]


def test_memory_that_the_driver_does_not_pin_is_used_unpinned_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(2)
    install(monkeypatch, driver)
    notes: list[str] = []
    unpin = pinned(DEVICE, np.zeros(4_000_000, np.uint8), notes.append)
    unpin()
    assert [call[0] for call in driver.calls] == ["register"]
    assert len(notes) == 1
    assert "does not pin 4 MB for decoded images (error 2)" in notes[0]
    assert "ulimit -l" in notes[0]


def test_memory_that_cannot_be_had_is_an_error_and_not_a_bus_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory_module.os, "posix_fallocate", refuse, raising=False)
    with pytest.raises(HeadspanError, match=r"5,000 MB of memory for decoded images cannot be reserved \(Cannot alloc"):
        memory_file(5_000_000_000)


def test_encoded_images_that_find_no_memory_are_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    descriptor = memory_file()
    monkeypatch.setattr(memory_module.os, "pwrite", refuse)
    with pytest.raises(HeadspanError, match=r"^2\.0 MB of memory for encoded images cannot be had \(No space left"):
        memory_module.write_at(descriptor, bytes(2_000_000), 0)
    memory_module.close_file(descriptor)


def test_a_system_without_memory_files_uses_a_file_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(memory_module.os, "memfd_create", raising=False)
    monkeypatch.delattr(memory_module.os, "posix_fallocate", raising=False)
    descriptor = memory_file(3_000_001)
    first, second = map_shared(descriptor, 3_000_001), map_shared(descriptor, 3_000_001)
    assert not first.any()
    first[-1] = 7
    assert second[-1] == 7
    memory_module.close_file(descriptor)
    assert second[-1] == 7
