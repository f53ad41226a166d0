"""Runs on several devices: one process for each, on one store, with one progress line and one summary."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import headspan as hs
from headspan.config import PrecomputeSettings
from headspan.errors import HeadspanError, SettingsError, SourceError
from headspan.events import NOTE, Progress
from headspan.model.load import LoadedModel
from headspan.run.defaults import resolved
from headspan.run.encoder import prepare
from headspan.run.executors import process as process_module
from headspan.run.executors.devices import _order
from headspan.run.executors.messages import Committed, Event, Failed, Finished, Message, Order, line_of, message_of
from headspan.run.executors.process import DeviceProcess, Inbox, end
from headspan.shards.samples import BadImage
from headspan.store.commit_records import UnitRecord
from tests.conftest import BROKEN_ROWS, ToyRun, relative_files
from tests.engine.test_cli import HEADSPAN, flags


def run(toy_run: ToyRun, out: Path, events: list[Progress] | None = None, **changed: Any) -> hs.Summary:
    """The toy's run, with units of eight images, so that each process gets some."""
    settings = toy_run.settings(**{"emit": ("heads",), "unit_images": 8, "device": "cpu,cpu", **changed})
    return hs.precompute(out=out, on_progress=(lambda event: None) if events is None else events.append, **settings)


@pytest.fixture(scope="module")
def alone(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the same run in one process."""
    out = tmp_path_factory.mktemp("alone") / "s.zarr"
    run(toy_run, out, device="cpu")
    return out


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DeviceProcess]]:
    """The processes of the runs in a test, none of which may outlive it."""
    found: list[DeviceProcess] = []
    begin = DeviceProcess.__init__

    def noted(self: DeviceProcess, *arguments: Any) -> None:
        begin(self, *arguments)
        found.append(self)

    monkeypatch.setattr(DeviceProcess, "__init__", noted)
    yield found
    assert not [process.pid for process in found if Path(f"/proc/{process.pid}").exists()]


def test_two_processes_give_the_store_one_summary_and_one_progress_line(
    toy_run: ToyRun, alone: Path, started: list[DeviceProcess], tmp_path: Path
) -> None:
    events: list[Progress] = []
    summary = run(toy_run, tmp_path / "s.zarr", events)
    assert len(started) == summary.processes == 2
    assert relative_files(tmp_path / "s.zarr") == relative_files(alone)
    assert (summary.images, summary.skipped, summary.quarantined) == (67, 0, [])
    assert [bad.row for bad in summary.bad] == list(BROKEN_ROWS)
    assert summary.bad == hs.open(tmp_path / "s.zarr").bad_images()
    assert all(seconds > 0 for seconds in summary.seconds.values())
    images = [event for event in events if event.stage == "images"]
    assert [event.done for event in images] == sorted(event.done for event in images)
    assert (images[0].done, images[-1].done, images[-1].total, images[-1].note) == (0, 70, 70, "3 bad")
    # The first note is about the toy's weights. Notes on model and settings are not repeated by each process.
    notes = [event.note for event in events if event.stage == NOTE]
    assert notes[1:] == ["headspan-toy on the CPU, in 2 processes, fp32, batches of 7"]
    # A finished store needs no processes; the same call says so.
    again = run(toy_run, tmp_path / "s.zarr")
    assert (again.images, again.skipped, again.processes) == (0, 70, 1)


@pytest.mark.slow
def test_a_run_in_two_processes_that_a_listener_ends_is_continued_by_one(
    toy_run: ToyRun, started: list[DeviceProcess], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(event: Progress) -> None:
        if event.stage == "images" and event.done >= 40:
            raise Stopped

    out = tmp_path / "s.zarr"
    settings = toy_run.settings(emit=("heads",), unit_images=8, batch_size=1, device="cpu,cpu")
    with pytest.raises(Stopped):
        hs.precompute(out=out, on_progress=stop, **settings)
    stored = hs.open(out).images
    summary = run(toy_run, out, device="cpu", batch_size=1)
    assert 0 < stored < 67
    assert summary.images == 67 - stored
    assert hs.open(out).complete
    assert hs.verify(out).problems == ()


def test_if_a_process_is_killed_the_others_compute_its_units(
    toy_run: ToyRun, alone: Path, started: list[DeviceProcess], tmp_path: Path
) -> None:
    events: list[Progress] = []

    def kill_one(event: Progress) -> None:
        events.append(event)
        if event.stage == "images" and event.done >= 20 and not killed:
            killed.append(started[0].pid)
            os.kill(started[0].pid, signal.SIGKILL)

    killed: list[int] = []
    settings = toy_run.settings(emit=("heads",), unit_images=8, device="cpu,cpu", batch_size=1)
    summary = hs.precompute(out=tmp_path / "s.zarr", on_progress=kill_one, **settings)
    assert killed
    assert (summary.images, summary.skipped) == (67, 0)
    assert [bad.row for bad in summary.bad] == list(BROKEN_ROWS)
    assert hs.open(tmp_path / "s.zarr").images == 67
    [said] = [event.note for event in events if event.stage == NOTE and "process on" in event.note]
    assert said == "the process on cpu was ended by SIGKILL; the other processes compute its units"
    found, wanted = relative_files(tmp_path / "s.zarr"), relative_files(alone)
    assert found.keys() == wanted.keys()
    assert hs.verify(tmp_path / "s.zarr").problems == ()
    images = [event.done for event in events if event.stage == "images"]
    assert images == sorted(images)
    assert images[-1] == 70


@pytest.mark.slow
def test_units_whose_commit_was_not_reported_count_as_stored(
    toy_run: ToyRun, started: list[DeviceProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def without_commits(line: bytes) -> Message:
        message = message_of(line)
        # As if the process had been killed between the two.
        return Event(NOTE, 0, None, "committed") if isinstance(message, Committed) else message

    monkeypatch.setattr("headspan.run.executors.process.message_of", without_commits)
    events: list[Progress] = []
    summary = run(toy_run, tmp_path / "s.zarr", events)
    assert (summary.images, summary.skipped) == (67, 0)
    assert summary.bad == hs.open(tmp_path / "s.zarr").bad_images()
    assert [event.note for event in events if event.stage == "images"][-1] == "3 bad"
    with pytest.raises(SourceError, match=r"3 of 70 images are bad, more than --max-bad 2 allows"):
        run(toy_run, tmp_path / "again.zarr", max_bad=2)


@pytest.mark.slow
def test_bad_images_that_a_killed_process_did_not_report_count_at_once(
    toy_run: ToyRun, started: list[DeviceProcess], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"

    def without_commits(line: bytes) -> Message:
        message = message_of(line)
        return Event(NOTE, 0, None, "committed") if isinstance(message, Committed) else message

    def signal_all(number: int) -> None:
        for process in started:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    killed = False

    def kill_one(event: Progress) -> None:
        nonlocal killed
        if event.stage != "images" or killed:
            return
        # Otherwise the processes could finish the store while this one looks at it.
        signal_all(signal.SIGSTOP)
        if killed := bool(hs.open(out).bad_images()):
            started[0]._process.kill()
        else:
            signal_all(signal.SIGCONT)

    def ended(processes: Sequence[DeviceProcess]) -> None:
        signal_all(signal.SIGCONT)
        end(processes)

    monkeypatch.setattr("headspan.run.executors.devices.end", ended)
    monkeypatch.setattr("headspan.run.executors.process.message_of", without_commits)
    with pytest.raises(SourceError, match=r"[12] of 70 images (is|are) bad, more than --max-bad 0 allows"):
        hs.precompute(
            out=out,
            on_progress=kill_one,
            **toy_run.settings(emit=("heads",), unit_images=4, batch_size=1, device="cpu,cpu", max_bad=0),
        )
    assert hs.open(out).images < 67


@pytest.mark.slow
def test_if_all_processes_are_killed_the_error_says_so_and_the_same_call_continues(
    toy_run: ToyRun, alone: Path, started: list[DeviceProcess], tmp_path: Path
) -> None:
    def kill_all(event: Progress) -> None:
        if event.stage == "images" and event.done >= 20:
            for process in started:
                os.kill(process.pid, signal.SIGKILL)

    settings = toy_run.settings(emit=("heads",), unit_images=8, device="cpu,cpu")
    with pytest.raises(HeadspanError) as found:
        hs.precompute(out=tmp_path / "s.zarr", on_progress=kill_all, **settings)
    ends = "cpu was ended by SIGKILL; cpu was ended by SIGKILL"
    assert str(found.value) == f"{tmp_path / 's.zarr'}: no process is left: {ends}; run the same command to continue"
    stored = hs.open(tmp_path / "s.zarr").images
    assert run(toy_run, tmp_path / "s.zarr").images == 67 - stored
    assert relative_files(tmp_path / "s.zarr") == relative_files(alone)


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_run_with_its_sentence(
    toy_run: ToyRun, started: list[DeviceProcess], tmp_path: Path
) -> None:
    shards = [tmp_path / path.name for path in toy_run.shards]
    for shard, source in zip(shards, toy_run.shards, strict=True):
        shard.write_bytes(source.read_bytes())

    def remove_last(event: Progress) -> None:
        if event.stage == "images":
            shards[2].unlink(missing_ok=True)

    settings = toy_run.settings(emit=("heads",), unit_images=8, device="cpu,cpu", shards=[str(path) for path in shards])
    with pytest.raises(HeadspanError, match=r"002\.tar"):
        hs.precompute(out=tmp_path / "s.zarr", on_progress=remove_last, **settings)
    assert len(started) == 2
    assert not list((tmp_path / "s.zarr").rglob(".*.tmp"))


@pytest.mark.slow
def test_bad_images_of_all_processes_count_together(
    toy_run: ToyRun, started: list[DeviceProcess], tmp_path: Path
) -> None:
    # Each unit has one bad image at most, and the two processes share the units.
    with pytest.raises(SourceError, match=r"3 of 70 images are bad, more than --max-bad 2 allows .*`headspan info"):
        run(toy_run, tmp_path / "s.zarr", max_bad=2)
    # A store that already has too many is refused before a process computes.
    out = tmp_path / "stopped.zarr"
    with pytest.raises(SourceError, match=r"1 of 70 images is bad, more than --max-bad 0 allows"):
        run(toy_run, out, device="cpu", max_bad=0)
    stored = hs.open(out).images
    with pytest.raises(SourceError, match=r"1 of 70 images is bad, more than --max-bad 0 allows"):
        run(toy_run, out, max_bad=0)
    assert hs.open(out).images == stored < 67


@pytest.mark.slow
def test_there_are_no_more_processes_at_work_than_units(toy_run: ToyRun, tmp_path: Path) -> None:
    summary = run(toy_run, tmp_path / "s.zarr", unit_images=128)
    assert (summary.images, summary.processes) == (67, 1)


@pytest.mark.slow
def test_each_device_gets_units_of_a_small_job(toy_run: ToyRun, tmp_path: Path) -> None:
    # One unit would suffice for a single device.
    summary = run(toy_run, tmp_path / "s.zarr", unit_images=None)
    assert (summary.images, summary.processes) == (67, 2)
    # Its plan is the one of a run that asks for such units; so a repair can write its files again.
    run(toy_run, tmp_path / "asked.zarr", unit_images=64, device="cpu")
    assert relative_files(tmp_path / "s.zarr") == relative_files(tmp_path / "asked.zarr")
    # A run that continues keeps the size of the store.
    assert run(toy_run, tmp_path / "s.zarr", unit_images=None, device="cpu").skipped == 70


def test_each_device_keeps_a_core_for_its_process(
    toy_run: ToyRun, toy_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = PrecomputeSettings.from_dict({"out": "s.zarr", **toy_run.settings(device="cpu,cpu", workers=None)})
    settings = resolved(given, prepare(given, lambda: toy_model))
    monkeypatch.setattr("headspan.decode.processes.decoder.cores", lambda: 13)
    ordered = [_order(settings, "cpu", devices).settings["workers"] for devices in (1, 2, 3, 8)]
    assert ordered == [12, 5, 3, 1]
    assert _order(replace(settings, workers=9), "cpu", 8).settings["workers"] == 9


def test_what_a_process_printed_last_is_part_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import os, sys; sys.stdin.readline(); sys.stdin.readline(); print('first', flush=True)\n"
        f"os.write(int(sys.argv[1]), {line_of(Finished({}))!r}); sys.exit('the\\n  device failed')"
    )
    monkeypatch.setattr("headspan.run.executors.process._BEGIN", program)
    inbox: Inbox = queue.SimpleQueue()
    process = DeviceProcess("cuda:1", inbox)
    process.order(Order({}, 1))
    assert [inbox.get()[1], inbox.get()[1]] == [Finished({}), None]
    assert process.end_in_words() == "ended with exit code 1 (it printed, last line first: device failed the first)"
    end([process])


def test_a_process_that_sends_no_more_but_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os, sys, time; os.close(int(sys.argv[1])); time.sleep(600)"
    monkeypatch.setattr("headspan.run.executors.process._BEGIN", program)
    monkeypatch.setattr("headspan.run.executors.process.GRACE_SECONDS", 0.1)
    inbox: Inbox = queue.SimpleQueue()
    process = DeviceProcess("cpu", inbox)
    assert inbox.get() == (process, None)
    assert process.end_in_words() == "was ended by SIGKILL"
    end([process])


def instead_of_precompute(monkeypatch: pytest.MonkeyPatch, program: str) -> tuple[DeviceProcess, Inbox]:
    """A process that received an order, and has the function `instead` of `program` in the place of `precompute`."""
    begin = process_module._BEGIN.replace(
        "from headspan.run.executors.device_main import main\n",
        "import headspan.run.executors.device_main as module\nmain = module.main\n"
        f"{program}\nmodule.precompute = instead\n",
    )
    assert program in begin
    monkeypatch.setattr(process_module, "_BEGIN", begin)
    inbox: Inbox = queue.SimpleQueue()
    process = DeviceProcess("cpu", inbox)
    process.order(Order(asdict(PrecomputeSettings(shards=("a.tar",), out="s.zarr")), 1))
    return process, inbox


def test_an_unexpected_error_of_a_process_is_what_its_end_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "def instead(*_): raise RuntimeError('CUDA error: device-side assert triggered')"
    process, inbox = instead_of_precompute(monkeypatch, program)
    assert inbox.get(timeout=60) == (process, None)
    ended = process.end_in_words()
    assert ended.startswith(
        "ended with exit code 1 (it printed, last line first: RuntimeError: CUDA error: device-side assert triggered"
    )
    end([process])


def test_a_process_that_swallows_its_interruption_ends_after_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    program = """
import sys, time
module.GRACE_SECONDS = 1.0
def instead(settings, on_progress, on_commit):
    # The interruption may come as soon as the parent has the message.
    try:
        on_progress(module.Progress("images", 0, 1, ""))
        time.sleep(600)
    except KeyboardInterrupt:
        print("swallowed", flush=True)
    time.sleep(600)
"""
    process, inbox = instead_of_precompute(monkeypatch, program)
    assert inbox.get(timeout=60)[1] == Event("images", 0, 1, "")
    # As when the parent is killed.
    assert process._process.stdin is not None
    process._process.stdin.close()
    assert inbox.get(timeout=20) == (process, None)
    assert process.end_in_words() == "ended with exit code 143 (it printed, last line first: swallowed)"
    end([process])


def test_what_is_printed_before_the_first_import_is_no_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(1, b'welcome to the cluster\\nno end')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    # As `device_main` sends what it has done, without importing torch.
    program = f"import os, sys; os.write(int(sys.argv[1]), {line_of(Finished({}))!r})"
    monkeypatch.setattr(process_module, "_BEGIN", program)
    inbox: Inbox = queue.SimpleQueue()
    process = DeviceProcess("cpu", inbox)
    assert [inbox.get()[1], inbox.get()[1]] == [Finished({}), None]
    process.wait()
    assert any("welcome" in line for line in process._last_lines)
    end([process])


def test_entries_of_the_path_that_are_no_strings_are_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])
    program = "import os, sys; os.write(int(sys.argv[1]), sys.stdin.buffer.readline())"
    monkeypatch.setattr(process_module, "_BEGIN", program)
    monkeypatch.setattr(process_module, "message_of", lambda line: json.loads(line))
    inbox: Inbox = queue.SimpleQueue()
    process = DeviceProcess("cpu", inbox)
    assert inbox.get()[1] == sys.path[:-1]
    process.wait()


def test_a_process_that_cannot_be_set_up_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            begun.append(self)

    def fail(self: DeviceProcess, line: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(DeviceProcess, "_send", fail)
    with pytest.raises(KeyboardInterrupt):
        DeviceProcess("cpu", queue.SimpleQueue())
    assert [process.returncode for process in begun] == [-signal.SIGKILL]


# Three processes import torch.
@pytest.mark.full_size
def test_a_users_script_without_a_guard_runs_on_several_devices(toy_run: ToyRun, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    settings = toy_run.settings(emit=["heads"], unit_images=8, device="cpu,cpu")
    # A module beside the script must not take the place of Python's.
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')")
    script.write_text(
        "import sys\nfolder = sys.path.pop(0)\n"
        f"import headspan\nsummary = headspan.precompute(out={str(tmp_path / 's.zarr')!r}, **{settings!r})\n"
        "print('images', summary.images, summary.processes)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "images 67 2\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word", "to_all"),
    [
        # A terminal sends Ctrl-C to every process of the foreground, and `kill` a signal to one.
        (signal.SIGINT, 130, "interrupted", True),
        (signal.SIGTERM, 143, "terminated", False),
    ],
    ids=["Ctrl-C", "kill"],
)
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_ends_all_its_processes_and_leaves_a_store_that_continues(
    number: signal.Signals, code: int, word: str, to_all: bool, toy_run: ToyRun, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    options = ["--unit-images", "8", "--batch-size", "1", "--device", "cpu,cpu"]
    process = subprocess.Popen(
        [*HEADSPAN, *flags(toy_run, out), *options], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    commits = out / "records" / "commits"
    while not list(commits.glob("unit-*.json")):
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.001)
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == code
    assert errors.splitlines()[-1] == f"headspan: {word}; finished units are kept; run the same command to continue"
    # Nobody is left of its session, and nothing of the units in flight.
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not list(out.rglob(".*.tmp"))
    assert not list(out.rglob("*.log"))
    stored = hs.open(out).images
    summary = hs.precompute(
        out=out, **toy_run.settings(unit_images=8, batch_size=1, emit=("heads", "patches", "mlps"), device="cpu")
    )
    assert summary.images == 67 - stored


@pytest.mark.slow
def test_processes_end_if_their_parent_is_killed(toy_run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    options = ["--unit-images", "8", "--batch-size", "1", "--device", "cpu,cpu"]
    process = subprocess.Popen(
        [*HEADSPAN, *flags(toy_run, out), *options], stderr=subprocess.DEVNULL, start_new_session=True
    )
    while not list((out / "records" / "commits").glob("unit-*.json")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.02)
    else:
        pytest.fail("a process outlived its parent by 30 seconds")
    assert not list(out.rglob(".*.tmp"))


@pytest.mark.slow
def test_processes_that_wait_for_the_plan_end_if_it_fails(
    toy_run: ToyRun, started: list[DeviceProcess], tmp_path: Path
) -> None:
    with pytest.raises(HeadspanError, match=r"none\.tar"):
        run(toy_run, tmp_path / "s.zarr", shards=[str(tmp_path / "none.tar")])
    assert len(started) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cpu,cuda:0", r"--device cpu,cuda:0: torch sees 0 GPUs; use auto or cpu"),
        ("cpu,gpu", r"--device cpu,gpu: gpu is unknown; write auto, cpu, cuda:0, or several GPUs such as"),
        ("cpu,auto", r"auto is unknown"),
        ("cpu,", r"an empty name is unknown"),
        ("", r"an empty name is unknown"),
        ("cuda:-1", r"cuda:-1 is unknown"),
        ("cuda:99999999999999999999", r"is unknown"),
    ],
)
def test_a_wrong_list_of_devices_is_refused_in_one_sentence(
    device: str, said: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        run(toy_run, tmp_path / "s.zarr", device=device)
    assert list(tmp_path.iterdir()) == []


def test_every_message_arrives_as_it_was_sent() -> None:
    record = UnitRecord(1, 8, 8, 7, {"a": (1, 2)}, [BadImage(9, "9", "a.tar", "damaged")])
    messages: list[Message] = [
        Order({"shards": ["a\udcff.tar"], "max_bad": None}, 2),
        Event("images", 3, None, "…"),
        Committed.of(record),
        Finished({"total": 1.5}),
        Failed("SourceError", "a.tar: gone"),
    ]
    for message in messages:
        line = line_of(message)
        assert line.count(b"\n") == 1
        found = message_of(line)
        assert type(found) is type(message)
        assert line_of(found) == line
    committed = message_of(line_of(Committed.of(record)))
    assert isinstance(committed, Committed)
    assert committed.bad_images == record.bad
    failed = message_of(line_of(messages[-1]))
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, SourceError)
    assert str(failed.error) == "a.tar: gone"
