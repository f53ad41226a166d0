"""Intercept Triton's launches: compile them without a GPU and pass them on, or run them on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

# The kernel's name, what was compiled, its arguments by name, and the grid.
Launched = Callable[[str, Any, dict[str, Any], Sequence[int]], None]


@dataclass(frozen=True)
class _Device:
    """The part of a driver that Triton needs before it compiles."""

    architecture: int
    binaries: bool

    def get_current_device(self) -> tuple[int, bool]:
        # A key of what a process has compiled.
        return self.architecture, self.binaries

    def get_current_stream(self, device: tuple[int, bool]) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def hand_launches_on(
    monkeypatch: pytest.MonkeyPatch, architecture: int, launched: Launched, binaries: bool = True
) -> None:
    """Compile every launch for an architecture (90 for sm_90), and call `launched` instead of running it.

    Without `binaries`, compiling ends with PTX, an eighth sooner; what it makes is cached in a folder of its own.
    """
    run = JITFunction.run
    if not binaries:
        monkeypatch.setattr(knobs.runtime, "add_stages_inspection_hook", _end_with_ptx)
        monkeypatch.setattr(knobs.cache, "dir", str(Path(knobs.cache.dir) / "without-binaries"))

    def compile_only(kernel: Any, *arguments: Any, grid: Sequence[int], warmup: bool, **settings: Any) -> Any:
        binary = run(kernel, *arguments, grid=grid, warmup=True, **settings)
        launched(kernel.fn.__name__, binary, dict(zip(kernel.arg_names, arguments, strict=False)) | settings, grid)
        return binary

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _Device(architecture, binaries))


def _end_with_ptx(
    backend: Any = None, stages: Any = None, options: Any = None, language: Any = None, capability: Any = None
) -> tuple[str, str]:
    """Let Triton make an empty binary; called without arguments, it names what differs, for keys of caches."""
    if stages is not None:
        stages["cubin"] = lambda ptx, metadata: b""
    return "without binaries", "without binaries"


def launch_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launch on the GPU with copies of the tensors' storages, strides included, and copy the storages back."""
    run = JITFunction.run

    def launch(kernel: Any, *arguments: Any, grid: Sequence[int], warmup: bool, **settings: Any) -> Any:
        copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

        def moved(argument: Any) -> Any:
            if isinstance(argument, TensorDescriptor):
                return replace(argument, base=moved(argument.base))
            if not isinstance(argument, torch.Tensor) or argument.is_cuda:
                return argument
            storage = argument.untyped_storage()
            _, copy = copies.setdefault(storage.data_ptr(), (storage, storage.cuda()))
            empty = torch.tensor([], dtype=argument.dtype, device="cuda")
            return empty.set_(copy, argument.storage_offset(), argument.size(), argument.stride())

        launched = run(kernel, *map(moved, arguments), grid=grid, warmup=warmup, **settings)
        for storage, copy in copies.values():
            storage.copy_(copy)
        return launched

    monkeypatch.setattr(JITFunction, "run", launch)
