"""The GPU benchmark's question about `precompute` at toy size on a CPU: every call that it makes on a GPU, once."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, gpu_precompute, measure, pictures
from benchmarks.light_main import light_main
from headspan_kernels import switches

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")


@pytest.fixture
def answer(tables: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], tuple[int, dict[str, Any]]]:
    """Ask only about `precompute`; each measured time is larger than the one before. Returns exit code and line."""
    pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")
    clock = count(1)

    def once(work: Any, for_ms: int = 0) -> dict[str, float]:
        work()
        return {"ms": float(next(clock))}

    random = np.random.default_rng()
    monkeypatch.setattr(gpu_precompute, "MODELS", (gpu_precompute.Model("reference", None, 5, 7, 3, 4),))
    monkeypatch.setattr(gpu_precompute, "photo_likes", lambda _: [pictures.photo_like(random, 50, 37)] * 3)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(switches, "SWITCHED_ON", tmp_path / "switched_on.json")
    for name, value in (
        ("DEVICE", "cpu"),
        ("milliseconds", once),
        ("replayed", once),
        ("_make_importable", lambda: None),
    ):
        monkeypatch.setattr(gpu, name, value)
    for name in ("copy_rate", "matmul_rate", "float64_rate"):
        monkeypatch.setattr(gpu, name, lambda: 1.0)
    for name, found in (("is_available", True), ("get_device_name", "Toy GPU")):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)

    def run() -> tuple[int, dict[str, Any]]:
        exit_code = gpu.main(["--only", "precompute"])
        (text,) = (tmp_path / "toy-gpu.jsonl").read_text().splitlines()
        return exit_code, json.loads(text)

    return run


def test_precompute_is_measured_at_toy_size(
    answer: Callable[[], tuple[int, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    exit_code, line = answer()
    # Each measured time is larger than the one before, and the plain pass is measured first.
    said = capsys.readouterr().out
    for kind in ("float16", "bfloat16"):
        assert f"\nTOWER_GRAPH sm_90 {kind} " in said
    assert said.count(": off, ") == 2
    rows = line["models"]["reference"]
    assert line["question"] == gpu.PRECOMPUTE
    assert line["left_out"] == []
    # Only decoding on the GPU needs a GPU.
    assert [name for name, row in rows.items() if "failed" in row] == ["decode gpu"]
    assert exit_code == 1
    assert "failed" not in line
    by_gpu, pixels = line["wrong"]
    assert by_gpu.startswith("reference, decode gpu: SettingsError: --decode gpu needs a CUDA device")
    assert pixels.startswith("pixels of --decode gpu: SettingsError: --decode gpu needs a CUDA device")
    for name in (
        "tower, fp16",
        "tower, bf16",
        *(
            f"tower {how}, {kind}"
            for how in ("as a CUDA graph", "with moments and transfer")
            for kind in ("fp16", "bf16")
        ),
    ):
        assert rows[name]["images_a_second"] > 0
    for name, images in (("defaults", 7), ("decode fast", 7), ("patches", 7)):
        row = rows[name]
        assert (row["images"], row["bad"]) == (images, 0)
        assert row["images_a_second"] == pytest.approx(images / row["seconds"]["total"], rel=0.01)
        assert {"waiting for images", "model", "storing", "writing"} < row["seconds"].keys()
    assert rows["decode fast"]["precision"] == rows["patches"]["precision"]
    assert rows["decode fast"]["share_of_tower"] > 0
    assert rows["patches"]["settings"]["emit"] == "heads,patches"
    assert 0 < rows["patches"]["storing_share"] < 1
    assert [mark["what"] for mark in line["marks"]] == [
        "reference, share of the tower at best",
        "reference, the same without start and end",
        "reference, defaults over named settings, same decoding",
    ]
    against = {"mean_levels": 0.1, "largest_levels": 5.0, "share_above_two": 0.0, "heads": 0.01}
    line["pixels"] = {"4:2:0": {"images": 3, "decoded_on_gpu": 3, "against exact": against}}
    head, *cells = gpu_precompute.table(line)
    assert {len(row) for row in cells} == {len(head)}
    assert len(cells) == len(rows) + 1 + len(line["marks"])
    assert "images/s from JPEGs" in gpu_precompute.headline(line)[0]


def test_rows_that_would_start_too_late_are_left_out_and_named(
    answer: Callable[[], tuple[int, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_precompute, "SECONDS", 0.0)
    monkeypatch.setattr(gpu_precompute, "precomputed", lambda values: {})
    _, line = answer()
    assert line["models"] == {"reference": {}}
    assert len(line["left_out"]) == 12
    assert line["left_out"][0] == "reference, tower, fp16"
    assert line["marks"] == []


def test_marks_compare_the_best_run_with_the_tower_and_the_defaults_with_the_same_decoding() -> None:
    rows = {
        "defaults": {"images_a_second": 890.0},
        "decode fast": {"images_a_second": 1000.0, "share_of_tower": 0.92, "steady_share_of_tower": 0.97},
        "decode gpu": {"images_a_second": 12000.0, "share_of_tower": 0.94},
    }
    found = gpu_precompute._marks({"ViT-L-14": rows, "ViT-B-32": rows})
    assert [(mark["found"], mark["met"]) for mark in found] == [
        (0.94, True),
        (0.97, True),
        (0.89, False),
        (12000.0, True),
        (1000.0, False),
        (0.89, False),
    ]
    rows["decode fast"] = {"failed": "why"}  # type: ignore[dict-item]
    assert len(gpu_precompute._marks({"ViT-L-14": rows})) == 1


def test_spawned_processes_do_not_import_a_light_main_module(monkeypatch: pytest.MonkeyPatch) -> None:
    script = ModuleType("__main__")
    script.__file__ = "/a/script.py"
    monkeypatch.setitem(sys.modules, "__main__", script)

    def imported() -> set[str]:
        return {"init_main_from_name", "init_main_from_path"} & get_preparation_data("child").keys()

    assert imported()
    with light_main():
        assert not imported()
    assert imported()


def test_pictures_made_in_processes_are_different_jpegs() -> None:
    made = pictures.photo_likes(3)
    assert len(set(made)) == 3
    assert all(picture.startswith(b"\xff\xd8") for picture in made)
