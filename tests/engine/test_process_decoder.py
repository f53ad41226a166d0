"""Tests of decoding processes: crashes, signals, their end, their memory, and sources that only the parent can read."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

import headspan as hs
from headspan.config import Preprocess, ResolvedSettings
from headspan.decode import choice
from headspan.decode.batches import Batch, rebatch
from headspan.decode.decoder import Decoder
from headspan.decode.prefetch import prefetch
from headspan.decode.processes import worker_process
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.decode.threads import ThreadDecoder
from headspan.errors import HeadspanError, SourceError
from headspan.shards.images import ImageReader
from headspan.shards.open_images import open_images
from headspan.shards.plan import scan
from headspan.shards.samples import BadImage, Sample
from headspan.timing import StageTimes
from tests.conftest import ToyRun, encoded_image, relative_files, write_tar
from tests.engine.crashing import MARK
from tests.engine.decoding import decoded, spans
from tests.waiting import wait_until
from tests.warm_python import servers

ROOT = Path(__file__).resolve().parents[2]
SMALL = Preprocess(size=(32, 32))


def shard(path: Path, images: int, marked: dict[int, str] | None = None, side: int = 40) -> list[Sample]:
    """A tar of JPEGs, some of which do what their mark says where tests.engine.crashing is installed."""
    marks = {number: MARK + how.encode() for number, how in (marked or {}).items()}
    members = [(f"{n:04d}.jpg", encoded_image(n, side, side + n % 5) + marks.get(n, b"")) for n in range(images)]
    return scan(str(write_tar(path, members)), 0, pytest.fail)[1]


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        worker_process, "_MAIN", f"from tests.engine import crashing; crashing.install(); {worker_process._MAIN}"
    )


def children(parent: int | None = None) -> set[int]:
    """The process ids of the children of a process, or of this one, that have not ended."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,stat=,comm="], capture_output=True, text=True, check=True)
    lines = [line.split(None, 3) for line in listed.stdout.splitlines()]
    wanted = str(parent or os.getpid())
    found = {int(pid) for pid, of, state, name in lines if of == wanted and state[0] not in "ZX" and name != "ps"}
    return found - servers()


def alive(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return listed.stdout.strip()[:1] not in ("", "Z", "X")


def test_a_tower_on_a_gpu_gets_processes_and_one_on_a_cpu_threads(toy_run: ToyRun) -> None:
    settings = ResolvedSettings.from_dict({**toy_run.settings(), "out": "none", "precision": "fp32"})
    made = {
        name: choice.decoder_of(settings, SMALL, 1 << 20, open_images, StageTimes(), torch.device(name))
        for name in ("cpu", "cuda")
    }
    assert isinstance(made["cpu"], ThreadDecoder)
    assert isinstance(made["cuda"], ProcessDecoder)
    assert isinstance(made["cuda"], Decoder)
    assert (made["cuda"].batch_size, made["cuda"].workers) == (settings.batch_size, settings.workers)


@pytest.mark.usefixtures("crashing")
def test_an_image_that_ends_its_process_twice_is_bad_and_the_others_are_decoded(tmp_path: Path) -> None:
    samples = shard(tmp_path / "a.tar", 23, {4: "SIGSEGV", 5: "SIGKILL", 22: "SIGABRT"})
    bad: list[BadImage] = []
    found = decoded(samples, SMALL, bad, 2, mechanism="processes")
    assert [row for row, _ in found] == [row for row in range(23) if row not in (4, 5, 22)]
    wanted = dict(decoded(samples, SMALL, []))
    for row, pixels in found:
        np.testing.assert_array_equal(pixels, wanted[row])
    assert [(image.row, image.key, image.reason) for image in bad] == [
        (4, "0004", "ended the process that decoded it 2 times (SIGSEGV)"),
        (5, "0005", "ended the process that decoded it 2 times (SIGKILL, as if memory were short)"),
        (22, "0022", "ended the process that decoded it 2 times (SIGABRT)"),
    ]


@pytest.mark.usefixtures("crashing")
def test_a_process_that_is_killed_once_loses_no_image(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.touch()
    samples = shard(tmp_path / "a.tar", 9, {4: f"once {marker}"})
    bad: list[BadImage] = []
    assert [row for row, _ in decoded(samples, SMALL, bad, 2, mechanism="processes")] == list(range(9))
    assert bad == []
    assert not marker.exists()


@pytest.mark.usefixtures("crashing")
def test_what_libraries_print_is_neither_shown_nor_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    samples = shard(tmp_path / "a.tar", 30, dict.fromkeys(range(30), "prints"))
    assert len(decoded(samples, SMALL, [], 1, mechanism="processes")) == 30
    assert capfd.readouterr() == ("", "")


def test_processes_that_cannot_start_are_an_error_with_their_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "_MAIN", "import sys; sys.exit('no such thing here'); main = None")
    sentence = (
        r"4 decoding processes in a row ended \(exit code 1\).*printing: no such thing here; run the same command"
    )
    with pytest.raises(HeadspanError, match=sentence):
        decoded(shard(tmp_path / "a.tar", 3), SMALL, [], 1, mechanism="processes")
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(HeadspanError, match=r"/none/python: a decoding process cannot be started \(.*--workers"):
        decoded(shard(tmp_path / "a.tar", 3), SMALL, [], 1, mechanism="processes")


def test_closing_early_ends_the_processes(tmp_path: Path) -> None:
    before = children()
    images = ProcessDecoder("exact", SMALL, 1 << 20, 7, 3).decode(spans(shard(tmp_path / "a.tar", 50)))
    first = next(images)
    assert len(children() - before) >= 1
    images.close()
    assert children() == before
    # The consumer may still hold the span.
    assert first.good.parts[0].shape == (3, 32, 32, 3)
    assert first.good.parts[0].any()
    first.good.release()


@pytest.mark.usefixtures("crashing")
def test_closing_does_not_wait_for_an_image_that_is_being_decoded(tmp_path: Path) -> None:
    samples = shard(tmp_path / "a.tar", 9, {6: "sleeps"})
    images = ProcessDecoder("exact", SMALL, 1 << 20, 7, 1).decode(spans(samples))
    next(images)
    # The seventh image is being decoded for ever.
    images.close()


def test_a_consumer_that_stops_without_releasing_ends_the_thread_that_waits_for_memory(tmp_path: Path) -> None:
    before = children()
    decoding = ProcessDecoder("exact", SMALL, 1, 1, 1).decode(spans(shard(tmp_path / "a.tar", 50)))
    with closing(prefetch(decoding, lambda span: 1, 1 << 30)) as images:
        held = [next(images) for _ in range(3)]
        # All slots are held by this consumer or wait for it.
        time.sleep(0.5)
    wait_until(lambda: not any(thread.name == "headspan-prefetch" for thread in threading.enumerate()))
    assert children() == before
    assert len(held) == 3


def test_each_slot_is_used_again_after_its_release_and_not_before(tmp_path: Path) -> None:
    samples = shard(tmp_path / "a.tar", 60)
    wanted = dict(decoded(samples, SMALL, []))
    held = []
    places = set()
    for span in ProcessDecoder("exact", SMALL, 1, 2, 2).decode(spans(samples)):
        places.add(span.good.parts[0].ctypes.data)
        held.append(span)
        if len(held) > 5:
            first = held.pop(0)
            for row, pixels in zip(first.good.rows.tolist(), first.good.parts[0], strict=True):
                np.testing.assert_array_equal(pixels, wanted[row])
            first.good.release()
            with pytest.raises(AssertionError, match="released once"):
                first.good.release()
    assert 6 <= len(places) <= 8


def test_a_batch_of_spans_with_few_good_images_does_not_wait_for_memory(tmp_path: Path) -> None:
    members = [(f"{n:04d}.jpg", encoded_image(n) if n % 4 == 3 else b"no image") for n in range(200)]
    samples = scan(str(write_tar(tmp_path / "a.tar", members)), 0, pytest.fail)[1]
    wanted = dict(decoded(samples, SMALL, []))
    # A span of four has one good image, so the sixteen spans of a batch do not fit the slots of three full batches.
    decoder = ProcessDecoder("exact", SMALL, 16 * 4 * 32 * 32 * 3, 16, 2)
    assert decoder.span_images(16) > 1
    held: list[Batch] = []
    rows: list[int] = []
    for batch in rebatch(decoder.decode(spans(samples, decoder.span_images(16))), 16):
        held.append(batch)
        if len(held) == 3:
            held.pop(0).release()
        rows += batch.rows.tolist()
        for row, pixels in zip(batch.rows.tolist(), np.concatenate(batch.parts), strict=True):
            np.testing.assert_array_equal(pixels, wanted[row])
    assert rows == list(range(3, 200, 4))


def test_the_memory_is_pinned_from_page_to_page_and_released_after_the_processes(tmp_path: Path) -> None:
    events: list[str] = []
    pinned: list[np.ndarray] = []

    def pin(memory: np.ndarray) -> Callable[[], None]:
        assert memory.ctypes.data % os.sysconf("SC_PAGESIZE") == 0
        pinned.append(memory)
        # Its size does not depend on the size of that file system.
        assert shared() == shared_before
        return lambda: events.append(f"unpinned, {len(children() - before)} processes")

    def shared() -> list[str]:
        """What this process maps of the file system for shared memory, such as semaphores of earlier tests."""
        return [line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm" in line]

    before, shared_before = children(), shared()
    for span in ProcessDecoder("exact", SMALL, 1 << 20, 4, 1, pin=pin).decode(spans(shard(tmp_path / "a.tar", 5))):
        assert np.shares_memory(span.good.parts[0], pinned[0])
        events.append("span")
        span.good.release()
    assert events == ["span", "span", "unpinned, 0 processes"]


@pytest.mark.parametrize("source", ["gzip", "memory", "pipe"])
@pytest.mark.parametrize("in_flight_bytes", [1, 1 << 24])
def test_sources_that_only_this_process_can_read_give_the_same_images_and_checksums(
    tmp_path: Path, source: str, in_flight_bytes: int
) -> None:
    members = [(f"{n:02d}.jpg", encoded_image(n) if n % 5 else b"") for n in range(11)]
    path = write_tar(tmp_path / "a.tar", members)
    samples = scan(str(path), 0, pytest.fail)[1]
    if source == "gzip":
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
        url = str(tmp_path / "b.tar.gz")
    else:
        MemoryFileSystem().pipe_file("/processes.tar", path.read_bytes())
        url = "memory://processes.tar" if source == "memory" else f"pipe:cat {path}"
    # The first images come from the plain file, so that one span has both kinds of source.
    mixed = [Sample(s.row, s.key, s.url if s.row < 4 else url, s.member, s.offset, s.size_bytes) for s in samples]
    wanted = decoded(samples, SMALL, [])
    rows: list[int] = []
    bad = 0
    for span in ProcessDecoder("exact", SMALL, in_flight_bytes, 3, 2).decode(spans(mixed)):
        for row, pixels in zip(span.good.rows.tolist(), span.good.parts[0], strict=True):
            np.testing.assert_array_equal(pixels, dict(wanted)[row])
        rows += span.good.rows.tolist()
        bad += len(span.bad)
        first = span.last_row + 1 - len(span.good.rows) - len(span.bad)
        content = b"".join(data for _, data in members[first : span.last_row + 1])
        assert (span.encoded_bytes, span.crc32c) == (len(content), google_crc32c.value(content))
        span.good.release()
    assert rows == [row for row, _ in wanted] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert bad == 3


def test_sources_that_only_this_process_can_read_are_each_opened_once_in_order(tmp_path: Path) -> None:
    samples: list[Sample] = []
    for name in "abc":
        path = write_tar(tmp_path / f"{name}.tar", [(f"{n:02d}.jpg", encoded_image(n)) for n in range(5)])
        zipped = tmp_path / f"{name}.tar.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        samples += scan(str(zipped), len(samples), pytest.fail)[1]
    opened: list[str] = []

    def open_noted(url: str) -> ImageReader:
        opened.append(Path(url).name)
        return open_images(url)

    decoder = ProcessDecoder("exact", SMALL, 1 << 20, 4, 2, open_noted)
    rows = [row for span in _released(decoder.decode(spans(samples, 4))) for row in span.good.rows.tolist()]
    assert rows == list(range(15))
    assert opened == ["a.tar.gz", "b.tar.gz", "c.tar.gz"]


def test_entries_of_the_module_path_that_are_not_strings_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [tmp_path, *sys.path])
    assert len(decoded(shard(tmp_path / "a.tar", 3), SMALL, [], 1, mechanism="processes")) == 3


def test_a_file_that_is_replaced_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    samples = shard(tmp_path / "a.tar", 40)
    images = ProcessDecoder("exact", SMALL, 1, 1, 1).decode(spans(samples))
    span = next(images)
    span.good.release()
    write_tar(tmp_path / "b.tar", []).replace(tmp_path / "a.tar")
    # The process has the old file open and goes on with it.
    assert sum(len(span.good.rows) for span in _released(images)) + 1 == 40
    shard(tmp_path / "a.tar", 9)

    def replaced_later(url: str) -> Any:
        reader = open_images(url)
        write_tar(tmp_path / "c.tar", [("x", bytes(99_999))]).replace(tmp_path / "a.tar")
        return reader

    with pytest.raises(SourceError, match=r"a\.tar: has changed since this run opened it; restore it"):
        next(ProcessDecoder("exact", SMALL, 1 << 20, 4, 1, replaced_later).decode(spans(samples)))


def _released(images: Iterator[Any]) -> Iterator[Any]:
    for span in images:
        yield span
        span.good.release()


SCRIPT = """
import sys
from headspan.config import Preprocess, ResolvedSettings
from headspan.decode.processes.decoder import ProcessDecoder
from headspan.shards.plan import scan
from headspan.shards.samples import SampleSpan

samples = scan(sys.argv[1], 0, print)[1]
spans = [SampleSpan.of(samples[n : n + 2]) for n in range(0, len(samples), 2)] * int(sys.argv[2])
images = 0
for span in ProcessDecoder("exact", Preprocess(), 1 << 24, 8, 2).decode(spans):
    images += len(span.good.rows)
    span.good.release()
    if images == 8:
        print("decoding", flush=True)
print("images", images, flush=True)
"""


def start_script(folder: Path, repeats: int) -> subprocess.Popen[str]:
    shard(folder / "a.tar", 8, side=200)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder / "a.tar"), str(repeats)]
    # A group of its own, as a terminal makes it for a command.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=folder
    )


def test_a_script_without_a_guard_of_its_main_part_works(tmp_path: Path) -> None:
    script = start_script(tmp_path, 1)
    out, errors = script.communicate(timeout=60)
    assert (out, errors) == ("decoding\nimages 8\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.usefixtures("interruptible")
def test_processes_end_with_the_one_that_started_them_and_say_nothing(tmp_path: Path, number: int) -> None:
    script = start_script(tmp_path, 100_000)
    try:
        assert script.stdout is not None
        assert script.stdout.readline() == "decoding\n"
        workers = children(script.pid)
        assert len(workers) == 2
        # Ctrl-C and many schedulers signal the whole group; SIGKILL hits the launching process alone.
        if number == signal.SIGKILL:
            script.kill()
        else:
            os.killpg(script.pid, number)
        _, errors = script.communicate(timeout=20)
        wait_until(lambda: not any(map(alive, workers)))
    finally:
        script.kill()
        script.wait()
    # One traceback at most, of the launching process.
    assert errors.count("Traceback") == (number == signal.SIGINT)
    assert "headspan/decode/processes/worker.py" not in errors


IDLE = """
import resource, sys
from headspan.decode.processes import worker
print(sorted({"torch", "pyarrow", "zarr", "headspan.store", "headspan.shards.samples"} & set(sys.modules)))
"""


@pytest.mark.usefixtures("real_starts")
def test_a_process_that_decodes_nothing_by_torch_imports_neither_torch_nor_pyarrow(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    images = ProcessDecoder("exact", SMALL, 1 << 20, 7, 1).decode(spans(shard(tmp_path / "a.tar", 50)))
    before = children()
    next(images)
    (worker,) = children() - before
    libraries = Path(f"/proc/{worker}/maps").read_text()
    images.close()
    assert "numpy" in libraries
    assert not [name for name in ("torch", "arrow") if f"lib{name}" in libraries]


def test_a_run_that_decodes_in_processes_writes_the_bytes_of_one_that_decodes_in_threads(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "uses_processes", lambda device: True)
    hs.precompute(out=tmp_path / "run.zarr", **toy_run.settings(workers=3))
    found, wanted = relative_files(tmp_path / "run.zarr"), relative_files(toy_run.path)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
