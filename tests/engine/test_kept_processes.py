"""Tests of decoding processes that start before a run has settings, and remain from one pass over spans to the next."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.config import PrecomputeSettings
from headspan.decode import choice
from headspan.decode import prefetch as prefetch_module
from headspan.decode.batches import DecodedSpan
from headspan.decode.prefetch import prefetch
from headspan.decode.processes import worker_process
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.processes.kept import DecodingProcesses
from headspan.shards.reader import ShardReader
from headspan.shards.tar_images import TarImages
from tests.conftest import ToyRun
from tests.engine.decoding import spans
from tests.engine.test_process_decoder import SMALL, children, shard
from tests.waiting import wait_until


@pytest.fixture
def processes() -> Iterator[DecodingProcesses]:
    before = children()
    with DecodingProcesses(2) as found:
        yield found
    assert children() == before


def decoder_in(processes: DecodingProcesses) -> ProcessDecoder:
    return ProcessDecoder("exact", SMALL, 1 << 20, 7, 2, kept=processes)


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


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


def test_an_image_is_not_blamed_for_a_process_that_ended_before_it_had_settings(
    tmp_path: Path, processes: DecodingProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = "from tests.engine import crashing; crashing.install()"
    monkeypatch.setattr(worker_process, "_MAIN", f"{install}; {worker_process._MAIN}")
    marker = tmp_path / "marker"
    marker.touch()
    samples = shard(tmp_path / "a.tar", 9, {0: f"once {marker}"})
    before = children()
    processes.start_early("exact")
    early = children() - before
    for pid in early:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not early & children())
    assert rows_of(list(decoder_in(processes).decode(spans(samples)))) == list(range(9))
    assert not marker.exists()


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


class HangingReader(ShardReader):
    """Only this process can read it; while it is told to hang, it answers when it is allowed to."""

    def __init__(self, url: str, go_on: threading.Event) -> None:
        super().__init__(url)
        self._data, self._go_on = Path(url).read_bytes(), go_on
        self.shall_hang, self.hangs = False, threading.Event()

    def read_up_to(self, offset: int, size: int) -> bytes:
        if self.shall_hang:
            self.hangs.set()
            self._go_on.wait(20)
        return self._data[offset : offset + size]

    def close(self) -> None:
        """Nothing is open."""


def test_a_thread_that_hangs_in_a_source_when_the_run_ends_never_writes_to_files_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch_module, "CLOSING_SECONDS", 0.1)
    go_on = threading.Event()
    samples = shard(tmp_path / "a.tar", 60)
    source = HangingReader(samples[0].url, go_on)
    before, threads = children(), threading.active_count()
    with DecodingProcesses(2) as processes:
        # However late a process starts, the ring has no room for most of the shard before the consumer takes a span.
        decoder = ProcessDecoder(
            "exact", SMALL, 1 << 16, 4, 2, open_source=lambda url: TarImages(source), kept=processes
        )
        assert decoder.slots * decoder.span_images(4) < len(samples) // 2
        with closing(prefetch(decoder.decode(spans(samples, 4)), lambda span: span.pixel_bytes, 1)) as decoded:
            next(decoded).good.release()
            source.shall_hang = True
            while not source.hangs.wait(2):
                next(decoded).good.release()
    wait_until(lambda: children() == before)
    files = [(tmp_path / f"{number}").open("wb+") for number in range(40)]
    for file in files:
        file.write(b"precious" * 10)
        file.flush()
    go_on.set()
    wait_until(lambda: threading.active_count() <= threads)
    assert children() == before
    for file in files:
        assert Path(file.name).read_bytes() == b"precious" * 10
        file.close()


def test_a_pass_that_begins_while_the_run_ends_keeps_no_process_no_memory_and_no_file(
    tmp_path: Path,
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    events: list[str] = []

    def pin(memory: np.ndarray) -> Callable[[], None]:
        begun.set()
        go_on.wait(20)
        events.append("pinned")
        return lambda: events.append("unpinned")

    def begin() -> None:
        with pytest.raises(RuntimeError, match="closed before this pass"):
            next(decoder.decode(spans(samples)))

    samples = shard(tmp_path / "a.tar", 20)
    before, threads = children(), threading.active_count()
    descriptors = open_files()
    with DecodingProcesses(2) as processes:
        processes.start_early("exact")
        decoder = ProcessDecoder("exact", SMALL, 1 << 20, 7, 2, pin=pin, kept=processes)
        threading.Thread(target=begin).start()
        assert begun.wait(20)
    # The processes end at once; the rest ends with the thread.
    wait_until(lambda: children() == before)
    assert events == []
    with pytest.raises(RuntimeError, match="closed before this pass"):
        next(decoder.decode(spans(samples)))
    go_on.set()
    wait_until(lambda: threading.active_count() <= threads)
    assert events == ["pinned", "unpinned"]
    assert children() == before
    assert open_files() == descriptors


FEW_FILES = """
import os, resource, sys
from headspan.config import Preprocess
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.processes.kept import DecodingProcesses
from headspan.errors import HeadspanError
from headspan.shards.plan import scan
from headspan.shards.samples import SampleSpan

early, soft, hard = sys.argv[2] == "early", int(sys.argv[3]), int(sys.argv[4])
samples = scan(sys.argv[1], 0, print)[1]
spans = [SampleSpan.of(samples[n : n + 4]) for n in range(0, len(samples), 4)]
before = len(os.listdir("/dev/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (before + soft, before + hard))
try:
    with DecodingProcesses(4) as processes:
        if early:
            processes.start_early("exact")
        decoder = ProcessDecoder("exact", Preprocess(size=(32, 32)), 1 << 20, 4, 4, kept=processes)
        for span in decoder.decode(spans):
            span.good.release()
    print("decoded")
    sys.exit()
except HeadspanError as error:
    print(error)
assert len(os.listdir("/dev/fd")) == before
"""


def with_few_files(folder: Path, *arguments: str) -> str:
    shard(folder / "a.tar", 20)
    command = [sys.executable, "-c", FEW_FILES, str(folder / "a.tar"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("start", ["early", "late"])
@pytest.mark.parametrize("most", [2, 6, 11, 13, 15])
def test_a_limit_on_open_files_is_one_sentence_and_leaves_no_file_open(tmp_path: Path, start: str, most: int) -> None:
    printed = with_few_files(tmp_path, start, str(most), str(most))
    # If it is a shard that cannot be opened, the sentence names the shard.
    assert re.fullmatch(r".*Too many open files.*(ulimit -n\)|the permissions)\n", printed)


def test_the_limit_on_open_files_is_raised_for_the_processes(tmp_path: Path) -> None:
    assert with_few_files(tmp_path, "early", "10", "99") == "decoded\n"


def test_memory_stays_pinned_until_the_consumer_has_ended(tmp_path: Path) -> None:
    events: list[str] = []
    with DecodingProcesses(2) as processes:
        decoder = ProcessDecoder(
            "exact", SMALL, 1 << 20, 7, 2, pin=lambda memory: lambda: events.append("unpinned"), kept=processes
        )
        decoding = decoder.decode(spans(shard(tmp_path / "a.tar", 50)))
        next(decoding)
        decoding.close()
        events.append("the consumer copies from a slot")
    assert events == ["the consumer copies from a slot", "unpinned"]


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
