"""Benchmarks run in their toy form, and the README's table is what the recorded lines say."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import bench_decode, bench_memory, bench_store_bytes, bench_textspan, gpu, gpu_tower, readme
from benchmarks.measure import benchmark


@pytest.mark.parametrize(
    "module", [bench_textspan, bench_store_bytes, bench_decode], ids=lambda module: module.__name__
)
def test_a_benchmark_ends_with_a_line_of_json(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[[bool], dict[str, Any]] = module.run
    benchmark(module.QUESTION, run, ["--toy"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["question"] == module.QUESTION
    assert line["versions"]["headspan"]
    assert line["device"]


def test_a_store_of_the_last_layers_of_vit_l_14_takes_at_most_12_kb_an_image() -> None:
    line = bench_store_bytes.run(toy=False)
    assert line["bytes_an_image"] <= bench_store_bytes.LIMIT_BYTES


def test_memory_of_precompute_does_not_grow_with_the_number_of_images() -> None:
    # What waits between stages fills up within the first few hundred images of camera size.
    assert bench_memory.run(toy=True)["growth"] < 1.1


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


def test_the_operations_of_vit_l_14_are_what_is_published() -> None:
    # open_clip's profile of ViT-L-14's image tower: 162.03 GFLOP, a product and a sum apart.
    assert gpu_tower.flops() / 1e9 == pytest.approx(162.03, rel=0.01)


def test_the_readmes_words_fit_the_lines_of_the_gpu_benchmark() -> None:
    attention = {"fused": {"ms": 0.5}, "times_faster": 1.5, "kept": True}
    norm = {"fused": {"ms": 0.25}, "times_faster": 0.75, "kept": False}
    number, against = gpu.ops_words({"rows": {"attention": attention, "norm": norm}})
    assert number == "attention: 0.5 ms; norm: 0.25 ms"
    assert against.endswith("1.5×; 0.75× (not kept)")
    line = {"images_a_second": 3000, "share_of_bf16": 0.61, "times_open_clip_compiled": None}
    assert gpu.tower_words(line) == (
        "3,000 images/s, 61% of the measured bf16 matrix rate",
        "open_clip's `encode_image`, compiled: not yet measured",
    )
    half = {"sum_error": 4e-3, "cosine": 0.99995}
    assert "met" in gpu.accuracy_words({"bf16": half, "fp32": half, "marks_met": True})[1]
