"""Benchmarks run in their toy form, and the README's table is what the recorded lines say."""

import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    bench_decode,
    bench_dense,
    bench_memory,
    bench_store_bytes,
    gpu,
    gpu_tower,
    measure,
    models,
    pictures,
    readme,
    scale,
)
from benchmarks.measure import alternate, benchmark, ratio
from headspan.model.convert import to_tower
from tests.tolerances import FLOAT32_SUM, ORACLE_FLOAT32, relative_error

# Memory has a test of its own, which takes longest.
MODULES = [module for module in readme.MODULES if module is not bench_memory]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_benchmark_ends_with_a_line_of_json_that_the_readme_has_words_for(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Callable[[bool], dict[str, Any]] = module.run
    benchmark(module.QUESTION, run, ["--toy"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["question"] == module.QUESTION
    assert line["versions"]["headspan"]
    assert line["device"]
    number, against = module.words(line)
    assert re.search(r"[1-9]", number)
    assert re.search(r"[1-9]", against)
    assert "|" not in number + against


def test_works_are_run_by_turns_and_compared_round_by_round() -> None:
    order: list[str] = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, repeats=2)  # type: ignore[misc]
    assert "".join(order) == "cba" + "abc" + "cba"
    assert [len(taken) for taken in times.values()] == [2, 2, 2]
    # That the machine was slower in the second round says nothing.
    assert ratio({"a": [1, 2, 9], "b": [2, 4, 9]}, "a", "b") == 0.5


def test_hooks_that_make_dense_contributions_give_headspans_numbers() -> None:
    visual = models.random_visual(models.TOY)
    tower = to_tower(visual, "toy")
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        plain = visual(pixels)
        patches, heads = (bench_dense.dense(visual, pixels, with_patches) for with_patches in (True, False))
        for with_patches in (True, False):
            assert bench_dense.disagreement(visual, tower, pixels, with_patches) < ORACLE_FLOAT32
        # The hooks are gone, and were no part of the pass.
        assert torch.equal(visual(pixels), plain)
    for layer in range(3):
        assert patches[layer].shape == (3, 3, 17, 24)
        assert relative_error(patches[layer].sum(2, keepdim=True), heads[layer]) < FLOAT32_SUM


def test_the_tower_is_counted_without_the_rows_that_its_last_block_leaves_out() -> None:
    size = models.MODELS["ViT-L-14"]
    assert gpu_tower.flops(size) == gpu_tower.flops()
    block = (gpu_tower.flops(size) - 2 * 256 * 3 * 14**2 * 1024) / 24
    # Two of a block's twelve squares of the width are keys and values, which every row is asked for.
    assert gpu_tower.flops(size) - gpu_tower.flops_done(size) == pytest.approx(block * 10 / 12, rel=0.02)


def test_the_operations_of_a_tiny_tower_are_what_one_counts_by_hand() -> None:
    # One patch and the class token, width 2.
    tiny = gpu.Sizes(batch=1, layers=1, heads=1, head_dim=2, joint=3, patch=2, pixels=2)
    patch, keys_and_values = 12 * 2, 2 * 2 * 4
    query, scores, mix, output, mlp = 4, 2 * 2, 2 * 2, 4, 2 * 8 + 8 * 2
    alone = patch + keys_and_values + query + scores + mix + output + mlp
    assert gpu_tower.flops_done(tiny) == 2 * alone
    block = keys_and_values + 2 * (query + scores + mix + output + mlp)
    assert gpu_tower.flops(tiny) == 2 * (patch + block)
    assert gpu_tower.flops_done(replace(tiny, layers=3)) == 2 * (alone + 2 * block)


def test_a_photo_like_picture_is_as_large_as_a_photograph_and_no_other_is_like_it() -> None:
    random = np.random.default_rng(0)
    first, second = (pictures.photo_like(random, 500, 375) for _ in range(2))
    assert first != second
    assert 40_000 < len(first) < 110_000
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (500, 375)
        neighbours = np.asarray(image.convert("L"), np.float64)
    # As in photographs, a pixel says nearly all of the one beside it; in noise it says nothing.
    assert np.corrcoef(neighbours[:, 1:].ravel(), neighbours[:, :-1].ravel())[0, 1] > 0.9


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("12 images: 1.0 MB, 400 bytes an image; memory up to 1,400.5 MB\n", 1_400_500_000),
        ("projected peak memory: 2 GiB", 2 << 30),
        ("1.0 MB: 400 bytes an image, and 9.0 MB of tables; memory at most 1,416 MB", 1_416_000_000),
        ("12 images: 1.0 MB, 400 bytes an image", None),
        ("memory is no concern; 12 MB are written", None),
    ],
)
def test_the_memory_that_a_command_projects_is_read_from_what_it_says(said: str, found: int | None) -> None:
    assert bench_memory.estimated_bytes(said) == found


def test_the_plan_on_paper_is_what_its_arithmetic_gives() -> None:
    text = scale.SCALE.read_text(encoding="utf-8")
    assert scale.with_tables(text) == text


DECODED = {(bench_decode.QUESTION, "a core"): {"exact_images_a_second": 250.0, "fast_images_a_second": 700.0}}


def test_the_plan_counts_gpu_hours_and_bytes_as_one_does_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "latest_lines", lambda: DECODED)
    # 434.5 TFLOP/s over the 162 GFLOP of ViT-L/14 are 2,682 images/s.
    assert scale.images_a_second("ViT-L-14") == pytest.approx(2682, rel=0.01)
    assert scale.gpu_hours("ViT-L-14", 4 * 10**8) == pytest.approx(4e8 / 2682 / 3600, rel=0.01)
    # ViT-B/32 waits for its 16 cores, L/14 does not.
    assert scale.gpu_hours("ViT-B-32", 10**6, "fast") == pytest.approx(1e6 / (16 * 700) / 3600)
    assert scale.gpu_hours("ViT-L-14", 10**6, "fast") == scale.gpu_hours("ViT-L-14", 10**6)
    # Embedding, norm and ok; 4 layers of 16 heads of 64 numbers of 2 bytes; the same for 257 tokens.
    arrays, heads = 4 * 768 + 12 + 1, 2 * 4 * 16 * 64
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "heads", 4) == arrays + heads
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "patches", 4) == arrays + heads + 257 * heads
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "heads", None) == arrays + 6 * heads


def test_the_plan_takes_a_gpus_measured_rate_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"tflop_s": 300.0, "commit": "abc1234"}
    monkeypatch.setattr(scale, "latest_lines", lambda: {**DECODED, (gpu.TOWER, "h200"): line})
    assert scale.tower_rate() == (300.0, "measured on h200 with ViT-L/14, commit abc1234")
    assert "not a measurement" not in scale.tables()


def test_a_store_of_the_last_layers_of_vit_l_14_takes_at_most_12_kb_an_image() -> None:
    line = bench_store_bytes.run(toy=False)
    assert line["bytes_an_image"] <= bench_store_bytes.LIMIT_BYTES


def test_memory_of_precompute_does_not_grow_with_the_number_of_images() -> None:
    # What waits between stages fills up within the first few hundred images of camera size.
    # The peak itself wanders by a tenth; 2,304 images' pixels would be a third of it.
    assert bench_memory.run(toy=True)["growth"] < 1.2


def test_the_readmes_table_is_made_from_the_recorded_lines() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert readme.with_table(text) == text


def test_without_a_gpu_its_benchmark_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.splitlines()) == 1
    assert "CUDA GPU" in said.err


def test_a_question_that_fails_costs_the_gpu_benchmark_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    torch.set_float32_matmul_precision("high")
    monkeypatch.setenv("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(gpu, "DEVICE", "nowhere")
    monkeypatch.setattr(gpu, "_make_importable", lambda: None)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_tower, "accuracy", lambda ceilings, left: {"known": list(ceilings), "in_time": left() > 1})
    questions = {"first": ("gpu_nothing", "run"), "second": ("gpu_tower", "accuracy")}
    monkeypatch.setattr(gpu, "QUESTIONS", questions)
    assert gpu.main() == 1
    assert torch.get_float32_matmul_precision() == "highest"
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ
    first, second = map(json.loads, (tmp_path / "some-gpu.jsonl").read_text().splitlines())
    assert first["failed"].startswith("ModuleNotFoundError: No module named 'benchmarks.gpu_nothing'")
    # There is no such device to measure ceilings on, and the line says so.
    assert second["known"] == ["failed"]
    assert "nowhere" in second["ceilings"]["failed"]
    assert second["in_time"]
    assert "failed" not in second
    assert second["versions"]["triton"]
    said = capsys.readouterr()
    assert [json.loads(text) for text in said.out.splitlines()[1:]] == [first, second]
    assert "first: failed: ModuleNotFoundError" in said.err
    # What has no answer does not hide an earlier one.
    assert list(measure.latest_lines()) == [("second", "some-gpu")]


def test_the_operations_of_vit_l_14_are_what_is_published() -> None:
    # open_clip's profile of ViT-L-14's image tower: 162.03 GFLOP, a product and a sum apart.
    assert gpu_tower.flops() / 1e9 == pytest.approx(162.03, rel=0.01)


def test_the_readmes_words_fit_the_lines_of_the_gpu_benchmark() -> None:
    attention = {"fused": {"ms": 0.5}, "times_faster": 1.5, "kept": True}
    norm = {"fused": {"ms": 0.25}, "times_faster": 0.75, "kept": False}
    number, against = gpu.ops_words({"rows": {"attention": attention, "norm": norm}})
    assert number == "attention: 0.5 ms; norm: 0.25 ms"
    assert against.endswith("1.5×; 0.75× (not kept)")
    wrong = {**attention, "wrong": 0.125, "kept": False}
    failed = {"fused": {"failed": "Exhausted: no room"}, "times_faster": None, "kept": False}
    number, against = gpu.ops_words({"rows": {"attention": wrong, "norm": failed}})
    assert number == "attention: 0.5 ms; norm: failed"
    assert against.endswith("1.5× (wrong); no ratio (not kept)")
    line = {"images_a_second": 3000, "share_of_bf16": 0.61, "times_open_clip_compiled": None}
    assert gpu.tower_words(line) == (
        "3,000 images/s, 61% of the measured bf16 matrix rate",
        "open_clip's `encode_image`, compiled: not yet measured",
    )
    half = {"sum_error": 4e-3, "cosine": 0.99995}
    assert "met" in gpu.accuracy_words({"bf16": half, "fp32": half, "marks_met": True})[1]
