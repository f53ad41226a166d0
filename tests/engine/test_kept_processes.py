"""Tests of decoding processes that start before a run has settings, and remain from one pass over spans to the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.decode.batches import DecodedSpan
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.processes.kept import DecodingProcesses
from tests.conftest import ToyRun
from tests.engine.decoding import spans
from tests.engine.test_process_decoder import SMALL, children, shard, wait_until


@pytest.fixture
def processes() -> Iterator[DecodingProcesses]:
    before = children()
    with DecodingProcesses(2) as found:
        yield found
    assert children() == before


def decoder_in(processes: DecodingProcesses) -> ProcessDecoder:
    return ProcessDecoder("exact", SMALL, 1 << 20, 7, 2, kept=processes)


def rows_of(decoded: list[DecodedSpan]) -> list[int]:
    return [row for span in decoded for row in span.good.rows.tolist()]


def test_processes_that_started_early_decode_and_remain_for_the_next_pass(
    tmp_path: Path, processes: DecodingProcesses
) -> None:
    samples = shard(tmp_path / "a.tar", 20)
    before = children()
    processes.start_early("exact")
    early = children() - before
    assert len(early) == 2
    for _ in range(2):
        found = list(decoder_in(processes).decode(spans(samples)))
        assert rows_of(found) == list(range(20))
        for span in found:
            span.good.release()
        assert children() - before == early


def test_a_process_that_ends_before_it_has_settings_is_started_again(
    tmp_path: Path, processes: DecodingProcesses
) -> None:
    before = children()
    processes.start_early("exact")
    (first, _) = sorted(children() - before)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: first not in children())
    assert rows_of(list(decoder_in(processes).decode(spans(shard(tmp_path / "a.tar", 20))))) == list(range(20))


def test_pixels_that_were_not_released_are_not_overwritten_by_the_next_pass(
    tmp_path: Path, processes: DecodingProcesses
) -> None:
    first = list(decoder_in(processes).decode(spans(shard(tmp_path / "a.tar", 9))))
    before = [part.copy() for span in first for part in span.good.parts]
    assert rows_of(list(decoder_in(processes).decode(spans(shard(tmp_path / "b.tar", 40, side=77))))) == list(range(40))
    for part, wanted in zip((part for span in first for part in span.good.parts), before, strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_a_pass_that_is_closed_early_ends_the_processes_and_the_next_one_starts_others(
    tmp_path: Path, processes: DecodingProcesses
) -> None:
    samples = shard(tmp_path / "a.tar", 50)
    before = children()
    decoding = decoder_in(processes).decode(spans(samples))
    next(decoding)
    assert children() != before
    decoding.close()
    assert children() == before
    assert rows_of(list(decoder_in(processes).decode(spans(samples)))) == list(range(50))


@pytest.mark.parametrize(
    ("device", "decode", "started"), [("cuda", "exact", 2), ("cuda", "gpu", 0), ("cpu", "exact", 0)]
)
def test_processes_start_early_only_if_processes_decode(
    toy_run: ToyRun, device: str, decode: str, started: int
) -> None:
    settings = PrecomputeSettings.from_dict({**toy_run.settings(), "out": "none", "decode": decode, "workers": 2})
    before = children()
    with choice.decoding_processes(settings) as found:
        choice.start_early(found, settings, device)
        assert len(children() - before) == started
    assert children() == before


def test_a_run_starts_its_processes_before_its_model_unless_its_store_is_complete(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "uses_processes", lambda device: True)
    routes: list[str] = []
    plain = DecodingProcesses.start_early

    def noted(self: DecodingProcesses, route: str) -> None:
        routes.append(route)
        plain(self, route)

    monkeypatch.setattr(DecodingProcesses, "start_early", noted)
    settings = {**toy_run.settings(), "out": str(tmp_path / "s.zarr"), "decode": "exact", "workers": 2}
    before = children()
    for _ in range(2):
        hs.precompute(**settings)
        assert routes == ["exact"]
    assert children() == before
    assert hs.open(tmp_path / "s.zarr").complete
