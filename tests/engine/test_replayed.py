"""A pass that is replayed from a CUDA graph, with a graph that runs on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from headspan.config import PrecomputeSettings
from headspan.model import replayed
from headspan.model.replayed import Replayed
from headspan.model.tower import PooledRow
from headspan.run import encoder
from headspan_kernels import switches


class Pass:
    """Doubles the pixels. A graph's replay computes the captured call again, into the captured call's results."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = self.replays = 0
        self.captured: tuple[torch.Tensor, PooledRow] | None = None
        self._capturing = False
        outer = self

        class Graph:
            def replay(self) -> None:
                outer.replays += 1
                assert outer.captured is not None
                pixels, row = outer.captured
                row.state.copy_(2 * pixels)

        @contextmanager
        def graph(made: Any, capture_error_mode: str) -> Iterator[None]:
            assert isinstance(made, Graph)
            assert capture_error_mode == "thread_local"
            outer._capturing = True
            yield
            outer._capturing = False

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", graph)

    def __call__(self, pixels: torch.Tensor) -> PooledRow:
        self.calls += 1
        # While a graph is captured, nothing is computed.
        state = torch.full_like(pixels, torch.nan) if self._capturing else 2 * pixels
        row = PooledRow(
            state=state, std=torch.ones(len(pixels)), heads=torch.zeros(len(pixels), 1, 1, 1), patches=None, terms=None
        )
        if self._capturing:
            self.captured = pixels, row
        return row


def test_batches_of_a_repeated_shape_are_replayed_and_others_run_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pass(monkeypatch)
    forward, found = Replayed(run), []
    batches = [torch.randn(images, 3) for images in (4, 4, 4, 1, 4)]
    for number, pixels in enumerate(batches):
        found.append(forward(pixels).state)
        # The first runs, the second is captured and replayed, and the short one runs.
        assert (run.calls, run.replays) == [(1, 0), (2, 1), (2, 2), (3, 2), (3, 3)][number]
    # Later replays leave earlier results as they are.
    for pixels, state in zip(batches, found, strict=True):
        assert torch.equal(state, 2 * pixels)


def test_shapes_that_do_not_repeat_are_never_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Pass(monkeypatch)
    forward = Replayed(run)
    for images in (4, 3, 4, 3):
        assert torch.equal(forward(torch.ones(images, 3)).state, torch.full((images, 3), 2.0))
    assert (run.calls, run.replays) == (4, 0)


def test_only_a_switch_makes_an_encoder_replay_its_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    shape = 64, 3, 17
    assert not switches.tower_graph(cuda, torch.float16, *shape)
    monkeypatch.setitem(switches.TOWER_GRAPH, ((9, 0), "float16", *shape), True)
    assert switches.tower_graph(cuda, torch.float16, *shape)
    assert not switches.tower_graph(cuda, torch.bfloat16, *shape)
    assert not switches.tower_graph(cuda, torch.float16, 64, 3, 50)
    assert not switches.tower_graph(torch.device("cpu"), torch.float16, *shape)
    asked: list[Any] = []

    def by_type(device: torch.device, dtype: torch.dtype, *shape: int) -> bool:
        asked.append((dtype, *shape))
        return dtype == torch.bfloat16

    monkeypatch.setattr(encoder, "tower_graph", by_type)
    for precision, replays in (("bf16", True), ("fp32", False)):
        settings = {
            "shards": "none.tar",
            "out": "none.zarr",
            "model": "reference",
            "device": "cpu",
            "precision": precision,
        }
        made = encoder.prepare(PrecomputeSettings.from_dict(settings))
        assert isinstance(made.forward, replayed.Replayed) is replays
    tokens, width = made.tower.pos_embed.shape
    assert asked == [(dtype, width, made.tower.layers, tokens) for dtype in (torch.bfloat16, torch.float32)]
