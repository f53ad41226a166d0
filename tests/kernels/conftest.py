"""Fixtures of the kernels' tests: random inputs, memory filled with NaN, where the ops run, and which ops are called.

Every run draws new inputs; the output of a failure names the seed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from headspan_kernels import switches
from tests.kernels import worlds
from tests.kernels.tritons import installed_and_untried


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print once why tests of compiled code were skipped."""
    if reason := installed_and_untried():
        terminalreporter.write_line(reason)


@pytest.fixture
def random() -> torch.Generator:
    seed = int.from_bytes(os.urandom(4), "little")
    print("seed", seed)
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def nothing_is_zero_by_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what the ops allocate with NaN, so that elements that are never written show."""
    empty = torch.empty

    def poisoned(*arguments: Any, **settings: Any) -> torch.Tensor:
        tensor = empty(*arguments, **settings)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture
def addressed() -> list[torch.Tensor]:
    """Tensors whose addresses a test passes as numbers: the emulated GPU must know that they are memory."""
    return []


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, addressed: list[torch.Tensor]) -> None:
    """Let Triton's ops run in this process; a parameter selects an architecture other than sm_90."""
    worlds.enter(monkeypatch, getattr(request, "param", 90), addressed)


@pytest.fixture
def tables() -> Iterator[None]:
    """Switch off what a test switches on."""
    with switches.without_entries():
        yield


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Let towers run on the fused ops; the names of the ops that they call."""
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
