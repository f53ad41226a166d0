"""Triton's launches, compiled for a GPU that is not there, and handed on instead of being launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# The kernel's name, what was compiled, its arguments by name, and the grid.
Launched = Callable[[str, Any, dict[str, Any], Sequence[int]], None]


@dataclass(frozen=True)
class _Device:
    """What Triton asks of a driver before it compiles."""

    architecture: int

    def get_current_device(self) -> int:
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def hand_launches_on(monkeypatch: pytest.MonkeyPatch, architecture: int, launched: Launched) -> None:
    """Compile every launch for an architecture, 90 for sm_90, and call `launched` in its place."""
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, grid: Sequence[int], warmup: bool, **settings: Any) -> Any:
        binary = run(kernel, *arguments, grid=grid, warmup=True, **settings)
        launched(kernel.fn.__name__, binary, dict(zip(kernel.arg_names, arguments, strict=False)) | settings, grid)
        return binary

    monkeypatch.setattr(JITFunction, "run", compile_only)
    monkeypatch.setattr(driver, "_active", _Device(architecture))
