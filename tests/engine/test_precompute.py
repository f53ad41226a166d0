"""Tests of precompute: bad images, odd counts, interruptions at every write, and second runs over the same store."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import headspan as hs
import headspan.run.precompute as precompute_module
from headspan.decompose.contributions import Contributions, contributions
from headspan.errors import HeadspanError, ModelError, SettingsError, SourceError, StoreError
from headspan.events import Listener, Progress
from headspan.io import local
from headspan.run.precompute import one_ahead
from headspan.shards.tar import Member, Tar
from headspan.store import commit_records
from headspan.timing import IN_TURN
from tests import tolerances
from tests.conftest import BROKEN_ROWS, TOY, ToyRun, image_members, relative_files, write_tar, zarr_array
from tests.tolerances import relative_error


def run(toy_run: ToyRun, out: Path, on_progress: Listener = lambda event: None, **changed: Any) -> hs.Summary:
    """The toy's run, by default with heads only."""
    return hs.precompute(out=out, on_progress=on_progress, **toy_run.settings(**{"emit": ("heads",), **changed}))


def small_shard(tmp_path: Path, rows: Sequence[int], broken: Sequence[int] = ()) -> list[str]:
    return [str(write_tar(tmp_path / "small.tar", image_members(rows, broken)))]


def test_bad_images_keep_their_row_with_nan_and_a_reason(toy_run: ToyRun, tmp_path: Path) -> None:
    events: list[Progress] = []
    summary = run(toy_run, tmp_path / "s.zarr", events.append)
    assert (summary.images, summary.skipped, summary.path) == (67, 0, str(tmp_path / "s.zarr"))
    assert [bad.row for bad in summary.bad] == list(BROKEN_ROWS)
    assert [bad.key for bad in summary.bad] == [f"{row:05d}" for row in BROKEN_ROWS]
    assert [bad.url for bad in summary.bad] == [str(toy_run.shards[n]) for n in (0, 2, 2)]
    # They are truncated after 40 bytes, in JPEG's first segments and in PNG's header.
    assert all(bad.reason.startswith(("cannot be opened: ", "not an image")) for bad in summary.bad)
    # Every stage took some time, and the stages of the model's thread follow one another.
    assert all(seconds > 0 for seconds in summary.seconds.values())
    assert sum(summary.seconds[stage] for stage in IN_TURN) <= summary.seconds["total"]
    store = hs.open(tmp_path / "s.zarr")
    assert store.bad_images() == summary.bad
    every = hs.open(tmp_path / "s.zarr", include_failed=True)
    assert np.flatnonzero(np.asarray(zarr_array(tmp_path / "s.zarr", "ok")[...]) == 0).tolist() == list(BROKEN_ROWS)
    for name, array in every.contents.row_arrays():
        if name != "ok":
            assert np.isnan(np.asarray(array[...])[list(BROKEN_ROWS)]).all(), name
    images = [event for event in events if event.stage == "images"]
    assert [event.done for event in images] == sorted(event.done for event in images)
    assert images[-1].done == images[-1].total == 70


def test_the_time_of_a_slow_model_is_reported_as_the_models(
    toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    batches: list[float] = []

    def slow(*arguments: Any) -> Contributions:
        time.sleep(0.05)
        batches.append(0.05)
        return contributions(*arguments)

    monkeypatch.setattr(precompute_module, "contributions", slow)
    seconds = run(toy_run, tmp_path / "s.zarr", batch_size=16).seconds
    assert len(batches) >= 5
    assert sum(batches) <= seconds["model"] <= seconds["total"]


@pytest.mark.parametrize(
    ("rows", "broken", "unit_images", "units"),
    [
        (range(7), (2, 3), 2, 4),
        (range(7), (0, 1), 2, 4),
        (range(8), (6, 7), 2, 4),
        (range(8), (), 4, 2),
        (range(1), (), 3, 1),
        (range(5), (), 1, 5),
    ],
)
def test_units_of_only_bad_images_and_partial_units_are_committed(
    rows: range, broken: tuple[int, ...], unit_images: int, units: int, toy_run: ToyRun, tmp_path: Path
) -> None:
    shards = small_shard(tmp_path, rows, broken)
    summary = run(toy_run, tmp_path / "s.zarr", shards=shards, unit_images=unit_images)
    store = hs.open(tmp_path / "s.zarr")
    good = [row for row in rows if row not in broken]
    assert summary.images == len(good)
    assert store.complete
    assert len(store.contents.records) == units
    assert store.rows.tolist() == good
    assert store.moments().count == len(good)
    assert np.isfinite(store.head(2, 0)).all()


def test_a_run_of_only_bad_images_finishes_without_images(toy_run: ToyRun, tmp_path: Path) -> None:
    shards = small_shard(tmp_path, range(3), (0, 1, 2))
    summary = run(toy_run, tmp_path / "s.zarr", shards=shards, unit_images=2)
    assert (summary.images, len(summary.bad)) == (0, 3)
    store = hs.open(tmp_path / "s.zarr")
    assert store.complete
    assert store.images == store.moments().count == 0
    with pytest.raises(StoreError, match=r"s\.zarr: 0 images, but TEXTSPAN needs at least 2"):
        hs.textspan(store, ["a", "b"], texts_per_head=1, save=True)


@pytest.mark.parametrize("batch_size", [1, 257])
def test_numbers_do_not_depend_on_the_batch(batch_size: int, toy_run: ToyRun, tmp_path: Path) -> None:
    run(toy_run, tmp_path / "s.zarr", batch_size=batch_size)
    found, wanted = hs.open(tmp_path / "s.zarr"), hs.open(toy_run.path)
    assert relative_error(found.embedding, wanted.embedding) < tolerances.FLOAT32_SUM
    assert relative_error(found.head(1, 2), wanted.head(1, 2)) < tolerances.FLOAT16_STORE
    assert relative_error(found.moments().gram, wanted.moments().gram) < tolerances.FLOAT32_SUM


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("fp16", tolerances.FLOAT16_PASS), ("bf16", tolerances.BFLOAT16_PASS)]
)
def test_runs_in_16_bits_are_close_to_the_exact_one(
    precision: str, tolerance: float, toy_run: ToyRun, tmp_path: Path
) -> None:
    run(toy_run, tmp_path / "s.zarr", precision=precision, emit=("mlps",))
    found, wanted = hs.open(tmp_path / "s.zarr"), hs.open(toy_run.path)
    assert relative_error(found.embedding, wanted.embedding) < tolerance
    total = found.mlps().sum(axis=1) + sum(found.head(layer, head) for layer in range(3) for head in range(3))
    assert relative_error(total, found.embedding / found.norm[:, 2:]) < tolerance


@pytest.mark.parametrize("workers", [1, 5])
def test_the_bytes_do_not_depend_on_the_number_of_threads(workers: int, toy_run: ToyRun, tmp_path: Path) -> None:
    run(toy_run, tmp_path / "s.zarr", workers=workers, emit=("heads", "patches", "mlps"))
    assert relative_files(tmp_path / "s.zarr") == relative_files(toy_run.path)


@pytest.mark.parametrize("interrupted", [False, True], ids=["wrong model", "Ctrl-C"])
def test_a_run_that_ends_early_does_not_wait_for_the_plan_of_a_large_shard(
    interrupted: bool, toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A KeyboardInterrupt arrives while the thread is being started, or the model cannot be loaded."""
    begun, ended, start, members = threading.Event(), threading.Event(), threading.Thread.start, Tar.members

    def slow(tar: Tar) -> Iterator[Member]:
        begun.set()
        [first, *_] = members(tar)
        try:
            for _ in range(10_000):
                yield first
                time.sleep(0.01)
        finally:
            ended.set()

    def begin(thread: threading.Thread) -> None:
        start(thread)
        if thread.name == "headspan-plan":
            assert begun.wait(10)
            if interrupted:
                raise KeyboardInterrupt

    monkeypatch.setattr(Tar, "members", slow)
    monkeypatch.setattr(threading.Thread, "start", begin)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt if interrupted else ModelError):
        run(toy_run, tmp_path / "s.zarr", **({} if interrupted else {"model": "no-such-model"}))
    assert time.monotonic() - began < 30
    assert ended.is_set()
    assert "headspan-plan" not in [thread.name for thread in threading.enumerate()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("after", [1, 32, 33, 69])
def test_an_interrupted_run_resumes_to_the_same_bytes(
    after: int, workers: int, toy_run: ToyRun, tmp_path: Path
) -> None:
    def interrupt(event: Progress) -> None:
        if event.stage == "images" and event.done >= after:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"workers": workers, "emit": ("heads", "patches", "mlps")}
    with pytest.raises(KeyboardInterrupt):
        run(toy_run, tmp_path / "s.zarr", interrupt, **settings)
    before = hs.open(tmp_path / "s.zarr")
    committed = sum(record.rows for record in before.contents.records)
    summary = run(toy_run, tmp_path / "s.zarr", **settings)
    assert summary.skipped == committed
    assert summary.images + summary.skipped + len(summary.bad) == 70
    assert hs.open(tmp_path / "s.zarr").bad_images() == hs.open(toy_run.path).bad_images()
    assert relative_files(tmp_path / "s.zarr") == relative_files(toy_run.path)


class Interrupter:
    """Raises KeyboardInterrupt at one of the moments before or after a file is staged, named or deleted."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def pass_by(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def around(self, action: Callable[..., Any]) -> Callable[..., Any]:
        def interrupted(*args: Any, **kwargs: Any) -> Any:
            self.pass_by()
            result = action(*args, **kwargs)
            self.pass_by()
            return result

        return interrupted


plain_unlink = Path.unlink


def unlink_record(path: Path, interrupter: Interrupter, missing_ok: bool = False) -> None:
    # Zarr deletes files too, in its own thread.
    if path.parent.name == "commits":
        interrupter.pass_by()
    plain_unlink(path, missing_ok)


def test_an_interruption_between_any_two_files_leads_to_the_same_bytes(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five images in units of two, and groups of two units, so that one group is merged in the middle of the run.
    monkeypatch.setattr(commit_records, "GROUP_UNITS", 2)
    shards = small_shard(tmp_path, range(5), (1,))
    settings: dict[str, Any] = {"shards": shards, "unit_images": 2, "layers": "2", "workers": 1}
    run(toy_run, tmp_path / "whole.zarr", **settings)
    wanted = relative_files(tmp_path / "whole.zarr")
    interruptions, different = 0, []
    for moment in range(0, 1000, 5):
        out = tmp_path / f"{moment}.zarr"
        with monkeypatch.context() as patch:
            interrupter = Interrupter(moment)
            patch.setattr(local, "write_atomically", interrupter.around(local.write_atomically))
            patch.setattr(Path, "unlink", functools.partialmethod(unlink_record, interrupter))
            try:
                run(toy_run, out, **settings)
            except KeyboardInterrupt:
                interruptions += 1
            else:
                break
        run(toy_run, out, **settings)
        assert hs.open(out).moments().count == 4
        if (found := relative_files(out)) != wanted:
            different.append((moment, sorted(set(found) ^ set(wanted))))
        shutil.rmtree(out)
    assert interruptions > 12
    assert different == []


def test_files_that_a_killed_run_left_are_deleted_when_the_store_is_finished(toy_run: ToyRun, tmp_path: Path) -> None:
    def interrupt(event: Progress) -> None:
        if event.stage == "images" and event.done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_run, tmp_path / "s.zarr", interrupt)
    # What SIGKILL leaves while the second unit's shard is written.
    (tmp_path / "s.zarr" / "norm" / "c" / "1").mkdir(parents=True, exist_ok=True)
    (tmp_path / "s.zarr" / "norm" / "c" / "1" / ".0.0badcafe.tmp").write_bytes(bytes(1000))
    run(toy_run, tmp_path / "s.zarr")
    assert not list((tmp_path / "s.zarr").rglob("*.tmp"))


def test_a_second_run_into_the_same_path_does_nothing(toy_run: ToyRun, tmp_path: Path) -> None:
    run(toy_run, tmp_path / "s.zarr")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")}
    events: list[Progress] = []
    summary = run(toy_run, tmp_path / "s.zarr", events.append)
    assert (summary.images, summary.skipped, summary.bad) == (0, 70, [])
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s.zarr").rglob("*")} == times
    assert not [event for event in events if event.stage == "images"]


@pytest.mark.parametrize("unit_images", [None, 1, 32, 64, 70, 100, 256])
def test_a_repeated_command_skips_all_images_for_any_unit_size(
    unit_images: int | None, toy_run: ToyRun, tmp_path: Path
) -> None:
    shards = small_shard(tmp_path, range(3))
    first = run(toy_run, tmp_path / "s.zarr", shards=shards, unit_images=unit_images)
    second = run(toy_run, tmp_path / "s.zarr", shards=shards, unit_images=unit_images)
    assert (first.images, second.images, second.skipped) == (3, 0, 3)


def test_a_pattern_names_the_same_rows_as_its_files(toy_run: ToyRun, tmp_path: Path) -> None:
    pattern = str(toy_run.shards[0].parent / "{000..002}.tar")
    run(toy_run, tmp_path / "s.zarr", shards=pattern)
    assert hs.open(tmp_path / "s.zarr").samples().equals(hs.open(toy_run.path).samples())
    # The list of files resumes the store that was planned over the pattern.
    assert run(toy_run, tmp_path / "s.zarr").skipped == 70


def other_model(tmp_path: Path) -> str:
    path = tmp_path / "headspan-toy-deeper.json"
    path.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], "layers": 4}}))
    return str(path)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": other_model, "pretrained": "random:0"}, r"was made with image tower .*headspan-toy\.json.*deeper"),
        ({"pretrained": "random:0"}, r"was made with image tower .*toy\.safetensors.*random:0"),
        ({"layers": "last2"}, r"was made with layers 0-2, but this run asks for 1-2"),
        ({"emit": ("heads", "mlps")}, r'was made with emit \["heads"\], but this run asks for \["heads", "mlps"\]'),
        ({"precision": "bf16"}, r'was made with precision "fp32", but this run asks for "bf16"'),
        ({"unit_images": 16}, r"was planned in units of 32 images, but this run asks for 16"),
    ],
)
def test_a_changed_setting_is_refused_by_its_name(
    changed: dict[str, Any], named: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    run(toy_run, out)
    before = relative_files(out)
    changed = {name: value(tmp_path) if callable(value) else value for name, value in changed.items()}
    with pytest.raises(StoreError, match=rf"s\.zarr: {named}.*(another --out|leave --unit-images out)"):
        run(toy_run, out, **changed)
    assert relative_files(out) == before


def test_a_refusal_shows_how_two_long_lists_of_layers_differ(toy_run: ToyRun, tmp_path: Path) -> None:
    deep = tmp_path / "headspan-toy-deep.json"
    vision = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 48}
    deep.write_text(json.dumps({**TOY, "vision_cfg": vision}))
    settings: dict[str, Any] = {"model": str(deep), "pretrained": "random:1", "shards": small_shard(tmp_path, range(1))}
    run(toy_run, tmp_path / "s.zarr", **settings, layers="0-46")
    with pytest.raises(StoreError) as refusal:
        run(toy_run, tmp_path / "s.zarr", **settings, layers="0-45,47")
    was, wanted = str(refusal.value).split(", but this run asks for ")
    assert was.rpartition("layers ")[2] != wanted.partition(";")[0]


def test_weights_that_changed_under_the_same_name_are_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(toy_run.weights, weights)
    run(toy_run, tmp_path / "s.zarr", pretrained=str(weights))
    tensors = load_file(weights)
    tensors["visual.proj"][0, 0] += 1
    save_file(tensors, weights)
    with pytest.raises(
        StoreError, match=r"s\.zarr: was made with image tower .* \(sha256 [0-9a-f]{12}\), but this run asks for "
    ):
        run(toy_run, tmp_path / "s.zarr", pretrained=str(weights))


def test_the_weights_of_another_text_tower_are_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    shutil.copy(toy_run.weights, weights)
    run(toy_run, tmp_path / "s.zarr", pretrained=str(weights))
    tensors = load_file(weights)
    tensors["logit_scale"] += 1
    save_file(tensors, weights)
    # The scale of the logits changes no text vector, so the text tower counts as the same.
    assert run(toy_run, tmp_path / "s.zarr", pretrained=str(weights)).skipped == 70
    tensors["text_projection"][0, 0] += 1
    save_file(tensors, weights)
    with pytest.raises(StoreError, match=r"s\.zarr: was made with text tower .* \(sha256 [0-9a-f]{12}\), but this run"):
        run(toy_run, tmp_path / "s.zarr", pretrained=str(weights))


def test_other_shards_are_refused_by_number_and_by_name(toy_run: ToyRun, tmp_path: Path) -> None:
    run(toy_run, tmp_path / "s.zarr")
    first, second, third = map(str, toy_run.shards)
    with pytest.raises(StoreError, match=r"s\.zarr: was planned over 3 shards, but this run names 2"):
        run(toy_run, tmp_path / "s.zarr", shards=[first, second])
    with pytest.raises(StoreError, match=r"001\.tar \(\d+ bytes\) is not the shard that was planned \(.*000\.tar"):
        run(toy_run, tmp_path / "s.zarr", shards=[second, first, third])


@pytest.mark.parametrize("spelling", ["from elsewhere", "relative", "moved"])
def test_shards_that_are_the_planned_ones_by_another_name_resume(
    spelling: str, toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(toy_run.shards[0].parent, tmp_path / "shards"))
    whole = [str(folder / shard.name) for shard in toy_run.shards]
    named = [f"shards/{shard.name}" for shard in toy_run.shards]
    monkeypatch.chdir(tmp_path)
    planned, again = (named, whole) if spelling == "from elsewhere" else (whole, named)
    events: list[Progress] = []

    def stop(event: Progress) -> None:
        events.append(event)
        if event.stage == "images" and event.done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_run, tmp_path / "s.zarr", stop, shards=planned)
    if spelling == "from elsewhere":
        monkeypatch.chdir("/")
    if spelling == "moved":
        folder.rename(tmp_path / "elsewhere")
        again = [str(tmp_path / "elsewhere" / shard.name) for shard in toy_run.shards]
    assert run(toy_run, tmp_path / "s.zarr", shards=again).skipped == 32
    found, wanted = hs.open(tmp_path / "s.zarr").embedding, hs.open(toy_run.path).embedding
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_shards_of_other_bytes_in_another_folder_are_refused(toy_run: ToyRun, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_run.shards[0].parent, tmp_path / "shards"))
    run(toy_run, tmp_path / "s.zarr")
    last = folder / toy_run.shards[-1].name
    os.utime(last, ns=(1, 1))
    with pytest.raises(StoreError, match=r"002\.tar \(\d+ bytes\) is not the shard that was planned .*time of modif"):
        run(toy_run, tmp_path / "s.zarr", shards=[str(folder / shard.name) for shard in toy_run.shards])


@pytest.mark.parametrize("change", ["bytes", "time"])
def test_a_shard_that_changed_since_the_plan_is_refused_by_its_name(
    change: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    (shard,) = small_shard(tmp_path, range(3))
    run(toy_run, tmp_path / "s.zarr", shards=[shard])
    if change == "bytes":
        write_tar(Path(shard), image_members(range(4)))
    else:
        os.utime(shard, ns=(1, 1))
    with pytest.raises(StoreError, match=r"small\.tar \(\d+ bytes\) is not the shard that was planned .*restore it"):
        run(toy_run, tmp_path / "s.zarr", shards=[shard])


def test_input_without_an_image_is_an_error_and_leaves_nothing_behind(toy_run: ToyRun, tmp_path: Path) -> None:
    empty = write_tar(tmp_path / "texts.tar", [("a.txt", b"caption"), ("b.json", b"{}")])
    with pytest.raises(SourceError, match=r"no image in 1 shard \(first: .*texts\.tar\)"):
        run(toy_run, tmp_path / "s.zarr", shards=[str(empty)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.tar"]


def test_an_interrupted_plan_leaves_nothing_behind(toy_run: ToyRun, tmp_path: Path) -> None:
    def interrupt(event: Progress) -> None:
        if event.stage == "plan" and event.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(toy_run, tmp_path / "s.zarr", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_written_is_refused_before_any_work(toy_run: ToyRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"file/s\.zarr: cannot be written \(.+\); choose another --out"):
        run(toy_run, tmp_path / "file" / "s.zarr")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_out_that_holds_something_else_is_not_changed(kind: str, toy_run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "precious").write_text("x")
    with pytest.raises(StoreError, match=r"mine: exists and is not a headspan store; choose another --out"):
        run(toy_run, out)
    assert out.exists()
    assert kind == "file" or (out / "precious").read_text() == "x"


def test_a_store_that_does_not_fit_the_disk_is_refused_with_both_sizes(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(StoreError, match=r"s\.zarr: the store will take \d\.\d MB, but 0\.0 MB are available;"):
        run(toy_run, tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_images_with_numbers_too_large_for_16_bits_are_bad_and_never_stored(toy_run: ToyRun, tmp_path: Path) -> None:
    width = 48
    # The last layer's heads are linear in its values. They are scaled so that about half of the images do not fit.
    plain = hs.open(toy_run.path, include_failed=True)
    largest = np.abs(np.stack([plain.head_coordinates(2, head) for head in range(3)])).max(axis=(0, 2))
    good = np.isfinite(largest)
    scale = 65504 / np.median(largest[good])
    tensors = load_file(toy_run.weights)
    tensors["visual.transformer.resblocks.2.attn.in_proj_weight"][2 * width :] *= scale
    tensors["visual.transformer.resblocks.2.attn.in_proj_bias"][2 * width :] *= scale
    weights = tmp_path / "large.safetensors"
    save_file(tensors, weights)
    # Only for the image at the median does rounding decide.
    fits = np.flatnonzero(good & (largest * scale < 65504 * 0.999))
    too_large = np.flatnonzero(good & (largest * scale > 65504 * 1.001))
    assert min(len(fits), len(too_large)) > 20

    summary = run(toy_run, tmp_path / "s.zarr", pretrained=str(weights))
    store = hs.open(tmp_path / "s.zarr")
    assert set(fits.tolist()) <= set(store.rows.tolist())
    assert not set(too_large.tolist()) & set(store.rows.tolist())
    for name, array in store.contents.row_arrays():
        assert not np.isinf(np.asarray(array[...])).any(), name
    reasons = {bad.row: bad for bad in summary.bad}
    assert len(reasons) == len(summary.bad) == 70 - store.images
    for row in too_large.tolist():
        assert reasons[row].reason == "the model's numbers are not finite in 16 bits"
        assert reasons[row].key == f"{row:05d}"
    assert [bad.row for bad in store.bad_images()] == sorted(reasons)
    assert store.moments().count == store.images
    assert np.isfinite(store.moments().gram).all()


def test_counts_may_be_numbers_of_numpy() -> None:
    names = ("batch_size", "workers", "unit_images", "in_flight_bytes", "image_size", "max_bad")
    # In a process of its own, since the tests check the types of all calls.
    script = (
        "import json, numpy, dataclasses\nfrom headspan.config import PrecomputeSettings\n"
        f"settings = PrecomputeSettings(('a.tar',), 's.zarr', **dict.fromkeys({names}, numpy.int64(32)))\n"
        "print(json.dumps(dataclasses.asdict(settings)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Settings are stored, and sent to other processes, as JSON.
    assert {name: json.loads(done.stdout)[name] for name in names} == dict.fromkeys(names, 32)


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "mps", "meta"])
def test_a_missing_device_is_refused_by_name(device: str, toy_run: ToyRun, tmp_path: Path) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(SettingsError, match=rf"--device {device}"):
        run(toy_run, tmp_path / "s.zarr", device=device)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"layers": "3"}, SettingsError, r"--layers 3: the model's layers are 0 to 2"),
        ({"layers": "last4"}, SettingsError, r"--layers last4: the model has 3 layers; ask for last1 to last3"),
        ({"emit": ("heads", "tokens")}, SettingsError, r"--emit tokens is unknown; choose from heads, patches, mlps"),
        ({"precision": "int8"}, SettingsError, r"--precision int8 is unknown"),
        ({"batch_size": 0}, SettingsError, r"--batch-size 0 is too small"),
        *[
            ({name: count}, SettingsError, rf"--{name.replace('_', '-')} ({said}|\d+ is too small)")
            for name in ("batch_size", "workers", "unit_images", "in_flight_bytes", "image_size")
            for count, said in (
                (10**20, "is too large; give at most"),
                (True, "True is not a whole number"),
                (-1, "-1"),
            )
        ],
        ({"shards": []}, SettingsError, r"no shards were given"),
        ({"model": "ViT-Z-99", "pretrained": "random:0"}, ModelError, r"ViT-Z-99: open_clip has no such model"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_is_written(
    changed: dict[str, Any], error: type[HeadspanError], text: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        run(toy_run, tmp_path / "s.zarr", **changed)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_become_the_store(toy_run: ToyRun, tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    assert run(toy_run, tmp_path / "s.zarr", shards=small_shard(tmp_path, range(3))).images == 3


def test_a_batch_is_yielded_after_the_next_one_is_made() -> None:
    made: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(3):
            made.append(number)
            yield number

    assert [(batch, len(made)) for batch in one_ahead(batches())] == [(0, 2), (1, 3), (2, 3)]
    assert list(one_ahead(iter(()))) == []


def test_float32_products_in_tf32_are_refused_on_a_gpu(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    with pytest.raises(SettingsError, match=r"'high', which is TF32; call torch\.set_float32_matmul_precision"):
        run(toy_run, tmp_path / "s.zarr", device="cuda:0", precision="fp32")
    assert not (tmp_path / "s.zarr").exists()
