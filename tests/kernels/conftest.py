"""The worlds in which Triton's ops run without a GPU.

By default Triton compiles for sm_90 and an emulated processor runs the result; with TRITON_INTERPRET=1, which Triton
reads when it is imported, its interpreter runs the Python. Inputs, and the emulator's order, are drawn afresh in every
run; a failure's output names the seeds.
"""

from __future__ import annotations

import os
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def random() -> torch.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def nothing_is_zero_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what the ops allocate with NaN, so that a number that is never written shows."""
    empty = torch.empty

    def poisoned(*arguments: Any, **settings: Any) -> torch.Tensor:
        tensor = empty(*arguments, **settings)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Triton's interpreter, or the emulated processor; a parameter asks for that of another architecture."""
    architecture = getattr(request, "param", 90)
    if INTERPRETED:
        if architecture != 90:
            pytest.skip("Triton's interpreter knows no architectures")
        widen_bfloat16_products(monkeypatch)
        return
    # Here, since Triton's wheels exist for Linux only.
    from tests.kernels.compiling import hand_launches_on
    from tests.kernels.emulator.launch import run as emulate

    seed = int.from_bytes(os.urandom(4), "little")
    print("emulator's seed", seed)
    choices = Random(seed)
    hand_launches_on(
        monkeypatch, architecture, lambda name, binary, arguments, grid: emulate(binary, arguments, grid, choices)
    )


def widen_bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter multiplies bfloat16 matrices by their raw bits; here they are widened first."""
    # Here, since Triton's wheels exist for Linux only.
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.create_dot

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The tower on the fused ops, and the names of those that it called."""
    # Here, since Triton's wheels exist for Linux only.
    from headspan_kernels import fused

    called: set[str] = set()

    def recorded(name: str) -> Any:
        def call(*arguments: Any, **settings: Any) -> Any:
            called.add(name)
            return getattr(fused, name)(*arguments, **settings)

        return call

    module = ModuleType("recorded")
    for name in fused.__all__:
        setattr(module, name, recorded(name))
    monkeypatch.setattr("headspan.model.description.ops", lambda device: module)
    return called
