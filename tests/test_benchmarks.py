"""Benchmarks run at toy size, and the generated tables equal what the recorded lines say."""

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
    bench_textspan,
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
def test_a_benchmark_prints_a_line_of_json_last_and_makes_a_table_of_it(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Callable[[bool], dict[str, Any]] = module.run
    benchmark(module.QUESTION, run, ["--toy"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["question"] == module.QUESTION
    assert line["versions"]["headspan"]
    assert line["device"]
    assert line["cpu"]["model"]
    assert module.DUE_TO
    head, *rows = module.table(line)
    assert rows
    for row in rows:
        assert len(row) == len(head)
        assert re.search(r"[1-9]", "".join(row[1:]))
        assert "|" not in "".join(row)
    headlines = dict(readme.HEADLINES)
    if module.QUESTION in headlines:
        for cell in headlines[module.QUESTION](line):
            assert re.search(r"[1-9]", cell)
            assert "|" not in cell
            # With two rows for each model, as in the recorded lines.
            assert len(cell) < 200


def test_measured_functions_take_turns_and_are_compared_round_by_round() -> None:
    order: list[str] = []
    times = alternate({name: lambda name=name: order.append(name) for name in "abc"}, repeats=2)  # type: ignore[misc]
    assert "".join(order) == "cba" + "abc" + "cba"
    assert [len(taken) for taken in times.values()] == [2, 2, 2]
    # A slower machine in the second round does not change the ratio.
    assert ratio({"a": [1, 2, 9], "b": [2, 4, 9]}, "a", "b") == 0.5


@pytest.mark.parametrize("folded", [False, True])
def test_the_dense_peer_gives_headspans_numbers_and_open_clips_embedding(folded: bool) -> None:
    visual = models.random_visual(models.TOY)
    tower, peer = to_tower(visual, "toy"), bench_dense.Dense(visual)
    pixels = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        plain = visual(pixels)
        assert relative_error(peer.plain(pixels), plain) < ORACLE_FLOAT32
        patches, heads = (peer.dense(pixels, with_patches, folded) for with_patches in (True, False))
        for with_patches in (False, True):
            assert bench_dense.disagreement(peer, tower, pixels, with_patches, folded) < ORACLE_FLOAT32
        # The peer is a copy: open_clip's own tower is unchanged.
        assert torch.equal(visual(pixels), plain)
    for layer in range(3):
        assert patches[layer].shape == (3, 3, 17, 24)
        assert relative_error(patches[layer].sum(2, keepdim=True), heads[layer]) < FLOAT32_SUM


def test_dense_textspan_picks_the_same_texts_after_pca() -> None:
    random = np.random.default_rng(0)
    _, contributions = bench_textspan.head_spread(random, 300)
    pool = random.standard_normal((60, 768)).astype(np.float32)
    published = bench_textspan.published(contributions, pool, 10)
    assert len(set(published.tolist())) == 10
    assert published.tolist() == bench_textspan.after_pca(contributions, pool, 10).tolist()


def test_a_line_names_the_processor_and_whether_avx_512_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "fpu avx2 avx512f avx512_bf16"
    monkeypatch.setattr(measure, "_cpuinfo", lambda name: {"flags": flags, "model name": "Some CPU"}[name])
    for name in measure.HIDE_AVX512:
        monkeypatch.delenv(name, raising=False)
    found = measure.processor()
    assert found == {"model": "Some CPU", "instructions": ["AVX2", "AVX-512", "AVX-512 bf16"], "avx512_hidden": False}
    for name, value in measure.HIDE_AVX512.items():
        assert not measure.processor()["avx512_hidden"]
        monkeypatch.setenv(name, value)
    assert measure.processor()["avx512_hidden"]
    line = {"device": "some-cpu", "cpu": measure.processor()}
    assert measure.machine(line) == "some-cpu with AVX-512 hidden"
    # A processor without AVX-512 has nothing to hide.
    flags = "fpu avx2"
    assert not measure.processor()["avx512_hidden"]


def test_the_last_blocks_operations_are_counted_for_the_class_tokens_row_only() -> None:
    size = models.MODELS["ViT-L-14"]
    assert gpu_tower.flops(size) == gpu_tower.flops()
    block = (gpu_tower.flops(size) - 2 * 256 * 3 * 14**2 * 1024) / 24
    # Of a block's twelve width × width matrices, two make keys and values, which are computed for every row.
    assert gpu_tower.flops(size) - gpu_tower.flops_done(size) == pytest.approx(block * 10 / 12, rel=0.02)


def test_the_operations_of_a_tiny_tower_equal_a_count_by_hand() -> None:
    # One patch and the class token, width 2.
    tiny = gpu.Sizes(batch=1, layers=1, heads=1, head_dim=2, joint=3, patch=2, pixels=2)
    patch, keys_and_values = 12 * 2, 2 * 2 * 4
    query, scores, mix, output, mlp = 4, 2 * 2, 2 * 2, 4, 2 * 8 + 8 * 2
    alone = patch + keys_and_values + query + scores + mix + output + mlp
    assert gpu_tower.flops_done(tiny) == 2 * alone
    block = keys_and_values + 2 * (query + scores + mix + output + mlp)
    assert gpu_tower.flops(tiny) == 2 * (patch + block)
    assert gpu_tower.flops_done(replace(tiny, layers=3)) == 2 * (alone + 2 * block)


def test_photo_like_pictures_are_as_large_as_photographs_and_differ() -> None:
    random = np.random.default_rng(0)
    first, second = (pictures.photo_like(random, 500, 375) for _ in range(2))
    assert first != second
    assert 40_000 < len(first) < 110_000
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (500, 375)
        neighbours = np.asarray(image.convert("L"), np.float64)
    # Neighbouring pixels are correlated as in photographs; in noise they are not.
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
def test_the_memory_estimate_is_read_from_the_commands_output(said: str, found: int | None) -> None:
    assert bench_memory.estimated_bytes(said) == found


def test_the_tables_of_scale_md_are_up_to_date() -> None:
    text = scale.SCALE.read_text(encoding="utf-8")
    assert scale.with_tables(text) == text


DECODED = {(bench_decode.QUESTION, "a core"): {"exact_images_a_second": 250.0, "fast_images_a_second": 700.0}}


def test_gpu_hours_and_bytes_of_large_runs_equal_a_count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "latest_lines", lambda: DECODED)
    # 434.5 TFLOP/s over the 162 GFLOP of ViT-L/14 are 2,682 images/s.
    assert scale.images_a_second("ViT-L-14") == pytest.approx(2682, rel=0.01)
    assert scale.gpu_hours("ViT-L-14", 4 * 10**8) == pytest.approx(4e8 / 2682 / 3600, rel=0.01)
    # With ViT-B/32 the GPU waits for its 16 cores to decode; with L/14 it does not.
    assert scale.gpu_hours("ViT-B-32", 10**6, "fast") == pytest.approx(1e6 / (16 * 700) / 3600)
    assert scale.gpu_hours("ViT-L-14", 10**6, "fast") == scale.gpu_hours("ViT-L-14", 10**6)
    # Embedding, norm and ok; 4 layers of 16 heads of 64 numbers of 2 bytes; the same for 257 tokens.
    arrays, heads = 4 * 768 + 12 + 1, 2 * 4 * 16 * 64
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "heads", 4) == arrays + heads
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "patches", 4) == arrays + heads + 257 * heads
    assert scale.stored_bytes(models.MODELS["ViT-L-14"], "heads", None) == arrays + 6 * heads


def test_large_runs_are_estimated_from_a_measured_gpu_rate_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"tflop_s": 300.0, "commit": "abc1234"}
    monkeypatch.setattr(scale, "latest_lines", lambda: {**DECODED, (gpu.TOWER, "h200"): line})
    assert scale.tower_rate() == (300.0, "measured on h200 with ViT-L/14, commit abc1234")
    assert "not a measurement" not in scale.tables()


def test_large_runs_are_estimated_from_runs_of_the_same_model_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {
        "tower, fp16": {"images_a_second": 40_000.0},
        "tower, bf16": {"images_a_second": 41_000.0},
        "decode fast": {"images_a_second": 6_000.0},
        "decode gpu": {"failed": "why"},
    }
    line = {"models": {"ViT-B-32": rows}, "commit": "abc1234"}
    monkeypatch.setattr(scale, "latest_lines", lambda: {**DECODED, (gpu.PRECOMPUTE, "h100"): line})
    assert scale.images_a_second("ViT-B-32") == 41_000
    assert scale.gpu_hours("ViT-B-32", 10**6) == pytest.approx(1e6 / 41_000 / 3600)
    assert scale.gpu_hours("ViT-B-32", 10**6, "fast") == pytest.approx(1e6 / 6_000 / 3600)
    # Sixteen cores decode, as nothing was measured with this decoding.
    assert scale.gpu_hours("ViT-B-32", 10**6, "exact") == pytest.approx(1e6 / (16 * 250) / 3600)
    # Another model's run shows what decoding can deliver, which is more than the tower of ViT-L/14 takes.
    assert scale.gpu_hours("ViT-L-14", 10**6, "fast") == scale.gpu_hours("ViT-L-14", 10**6)
    assert scale.from_jpegs("ViT-B-32", "gpu") is None
    assert "ViT-B-32 measured on h100, commit abc1234" in scale.tables()


def test_the_only_questions_that_are_named_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("is_available", lambda: True), ("get_device_name", lambda: "Some GPU")):
        monkeypatch.setattr(torch.cuda, name, value)
    for name in ("copy_rate", "matmul_rate", "float64_rate"):
        monkeypatch.setattr(gpu, name, lambda: 1.0)
    monkeypatch.setattr(gpu, "_make_importable", lambda: None)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_tower, "speed", lambda ceilings, left: {})
    monkeypatch.setattr("benchmarks.gpu_switches.decide", lambda line: "decided")
    assert gpu.main(["--only", "tower"]) == 0
    (text,) = (tmp_path / "some-gpu.jsonl").read_text().splitlines()
    assert json.loads(text)["question"] == gpu.TOWER
    with pytest.raises(SystemExit):
        gpu.main(["--only", "towers"])
    assert "invalid choice: 'towers'" in capsys.readouterr().err


def test_a_store_of_the_last_layers_of_vit_l_14_takes_at_most_12_kb_an_image() -> None:
    unit = bench_store_bytes.UNIT_IMAGES
    one, two = (bench_store_bytes.whole_bytes(units * unit, np.random.default_rng(0)) for units in (1, 2))
    # What the second unit does not add is there once, however many images a store has.
    assert (two - one) / unit + (2 * one - two) / bench_store_bytes.IMAGES <= bench_store_bytes.LIMIT_BYTES


def test_memory_of_precompute_does_not_grow_with_the_number_of_images() -> None:
    # Queues between stages are full within the first few hundred images of camera size.
    # The peak varies by a tenth; the pixels of 2,304 more images would be a third of it.
    line = bench_memory.run(toy=True)
    (row,) = line["rows"].values()
    assert row["images"] == (256, 2560)
    assert row["growth"] < 1.2
    assert row["within_estimate"]
    head, shown = bench_memory.table(line)
    assert len(shown) == len(head)
    assert shown[4].endswith("MB, not exceeded")


def test_the_generated_tables_are_up_to_date_with_the_recorded_lines() -> None:
    assert len(readme.pages()) == 4
    for path, block in readme.pages().items():
        text = path.read_text(encoding="utf-8")
        assert readme.with_block(text, block) == text, f"{path}: out of date; run python -m benchmarks.readme"


def test_the_readmes_headlines_are_few_and_short() -> None:
    assert len(readme.HEADLINES) <= 10
    rows = readme.headlines().splitlines()[2:]
    assert rows
    assert all(len(row) < 420 for row in rows)


def test_the_headlines_take_the_latest_line_with_all_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        ("q", "old"): {"date": "2026-01-01", "number": "1"},
        ("q", "new"): {"date": "2026-01-02", "number": "2"},
        ("q", "new, hidden"): {"date": "2026-01-03", "number": "3", "cpu": {"avx512_hidden": True}},
        ("other", "new"): {"date": "2026-01-04", "number": "4"},
    }
    monkeypatch.setattr(readme, "latest_lines", lambda: found)
    monkeypatch.setattr(readme, "HEADLINES", (("q", lambda line: (line["number"], "beside")),))
    assert readme.headlines().splitlines()[2:] == ["| q | 2 | beside | new |"]


def test_without_a_gpu_its_benchmark_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.splitlines()) == 1
    assert "CUDA GPU" in said.err


def test_a_failing_question_does_not_stop_the_gpu_benchmark(
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
    questions = {"first": ("1", "gpu_nothing", "run", 0.0), "second": ("2", "gpu_tower", "accuracy", 0.0)}
    monkeypatch.setattr(gpu, "QUESTIONS", questions)
    # It would write which kernels are switched on, by the lines in RESULTS.
    decided: list[dict[str, Any]] = []
    monkeypatch.setattr("benchmarks.gpu_switches.decide", lambda line: decided.append(line) or "decided")
    assert gpu.main() == 1
    assert torch.get_float32_matmul_precision() == "highest"
    assert "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE" not in os.environ
    first, second = map(json.loads, (tmp_path / "some-gpu.jsonl").read_text().splitlines())
    assert first["failed"].startswith("ModuleNotFoundError: No module named 'benchmarks.gpu_nothing'")
    # No ceilings can be measured on a device that does not exist, and the line says so.
    assert second["known"] == ["failed"]
    assert "nowhere" in second["ceilings"]["failed"]
    assert second["in_time"]
    assert "failed" not in second
    assert second["versions"]["triton"]
    said = capsys.readouterr()
    # The verdicts come before a question's line.
    assert said.out.splitlines()[1::2] == ["decided", "decided"]
    assert [json.loads(text) for text in said.out.splitlines()[2::2]] == decided == [first, second]
    assert "first: failed: ModuleNotFoundError" in said.err
    # A failed line does not hide an earlier answer.
    assert list(measure.latest_lines()) == [("second", "some-gpu")]


def test_the_operations_of_vit_l_14_equal_the_published_count() -> None:
    # open_clip's profile of ViT-L-14's image tower: 162.03 GFLOP; a product and its sum count as two.
    assert gpu_tower.flops() / 1e9 == pytest.approx(162.03, rel=0.01)


def test_the_tables_of_the_gpu_benchmark_show_failures_and_slow_ops() -> None:
    attention = {
        "fused": {"ms": 0.5},
        "reference": {"ms": 1.0},
        "reference, compiled": {"ms": 0.75},
        "share_of_ceiling": 0.25,
        "bound": "memory",
        "times_faster": 1.5,
        "kept": True,
    }
    norm = {"fused": {"ms": 0.25}, "reference": {"ms": 0.1875}, "times_faster": 0.75, "kept": False}
    _, first, second = gpu.ops_table({"rows": {"attention": attention, "norm": norm}})
    assert first == ["attention", "0.5 ms", "0.75 ms (reference, compiled)", "1.50", "0.25 (memory)", ""]
    assert second == ["norm", "0.25 ms", "0.188 ms (reference)", "0.75", "", "slower than PyTorch"]
    wrong = {**attention, "wrong": 0.125, "kept": False}
    failed = {"fused": {"failed": "Exhausted: no room"}, "times_faster": None, "kept": False}
    _, first, second = gpu.ops_table({"rows": {"attention": wrong, "norm": failed}})
    assert (first[3], first[5]) == ("1.50", "WRONG")
    assert second[1:5] == ["failed", "", "", ""]
    tower = {"batch": 256, "rows": {"ours": {"ms": 128.0}, "peer": {"ms": 160.0}, "other": {"failed": "no room"}}}
    _, *rows, share = gpu.tower_table({**tower, "share_of_bf16": 0.61})
    assert rows == [["ours", "128.0", "2,000", "1.00"], ["peer", "160.0", "1,600", "1.25"], ["other", "failed", "", ""]]
    assert share[1] == "0.61"
    assert gpu.tower_headline({"images_a_second": 3000, "times_open_clip_compiled": None}) == (
        "ViT-L/14, bf16: 3,000 images/s with all heads and patches",
        "open_clip's `encode_image`, compiled: not yet measured",
    )
    half = {"sum_error": 4e-3, "heads_error": 1e-3, "patches_error": 1e-2, "cosine": 0.99995}
    assert gpu.accuracy_table({"bf16": half, "fp32": half, "marks_met": True})[-1][0] == "required of 16 bits: met"
