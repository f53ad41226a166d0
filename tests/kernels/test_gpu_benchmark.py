"""The GPU benchmark at toy size on a CPU, in Triton's interpreter: every call that it makes on a GPU, once."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks import gpu, gpu_tower, measure, models
from headspan.model import tower
from tests import tolerances
from tests.kernels.tritons import DEPRECATIONS, INTERPRETED
from tests.tolerances import relative_error

if not INTERPRETED:
    pytest.skip("needs a process with TRITON_INTERPRET=1; tools/check.py starts one", allow_module_level=True)
pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from benchmarks import gpu_cases, gpu_ops
from headspan_kernels import attention, fused, linear, moments, reference, switches
from headspan_kernels.switches import Blocks, Cut, Tiles

pytestmark = [
    pytest.mark.usefixtures("world", "nothing_is_zero_by_chance"),
    pytest.mark.interpreted,
    DEPRECATIONS,
]


@pytest.fixture
def run_toy(
    used: set[str], tables: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[], dict[str, Any]]:
    """Run the GPU benchmark on the CPU without compiling; each measured time is larger than the one before.

    Returns its lines by question, and the exit code.
    """
    toy = gpu.Sizes(batch=2, layers=2, heads=1, head_dim=8, joint=7, patch=4, pixels=8, photo=(9, 11))
    clock = count(1)

    def once(work: Any, for_ms: int = 0) -> dict[str, float]:
        work()
        return {"ms": 1.05 ** next(clock)}

    for name, value in (("DEVICE", "cpu"), ("SIZES", toy), ("milliseconds", once), ("replayed", once)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "_make_importable", lambda: None)
    monkeypatch.setattr(gpu_tower, "_open_clip", lambda: models.random_visual(toy))
    monkeypatch.setattr(torch, "compile", lambda work, **settings: work)
    for name, found in (("is_available", True), ("get_device_name", "Toy GPU"), ("max_memory_allocated", 0)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(switches, "SWITCHED_ON", tmp_path / "switched_on.json")
    monkeypatch.setattr(gpu_cases, "BACKENDS", {"FlashAttention": SDPBackend.MATH})
    monkeypatch.setattr(gpu_cases, "SHAPES", {"3 tokens": (3, 1, 16)})
    monkeypatch.setattr(gpu_cases, "MAPS", ((16, 24),))
    monkeypatch.setattr(gpu_tower, "COMPARED", 1)
    # The switch is for GPUs.
    monkeypatch.setattr(
        tower,
        "sums_in_products",
        lambda _, kind, *shape: ((9, 0), switches.name_of(kind), *shape) in switches.SUMS_IN_PRODUCTS,
    )
    # The real tiles are much larger than the toy.
    blocks = (Blocks(16, 16, 4, 1), Blocks(16, 16, 4, 1, whole=True))
    monkeypatch.setattr(attention, "candidates", lambda *shape: blocks)
    monkeypatch.setattr(moments, "candidates", lambda *shape: (Tiles(16, 16, 1, 2, 255), Tiles(16, 32, 1, 2, 255)))
    small = (Cut(32, 32, 16, 4, 1, 1), Cut(32, 16, 32, 4, 1, 1))
    monkeypatch.setattr(linear, "candidates", lambda gated=False: small)
    # Rows of fp16 are the same calls, and a test compares their names.
    monkeypatch.setattr(gpu_ops, "DTYPES", (torch.bfloat16,))
    # The interpreter truncates to bfloat16.
    monkeypatch.setitem(gpu_ops.TOLERANCE, torch.bfloat16, 3 * tolerances.BFLOAT16_ROUNDING)

    def run() -> dict[str, Any]:
        exit_code = gpu.main(["--only", "accuracy", "ops", "tower"])
        lines = [json.loads(text) for text in (tmp_path / "toy-gpu.jsonl").read_text().splitlines()]
        assert [line["question"] for line in lines] == [gpu.ACCURACY, gpu.OPS, gpu.TOWER]
        return {"exit_code": exit_code} | {line["question"]: line for line in lines}

    return run


def fails(*arguments: Any, **settings: Any) -> Any:
    # Like Triton's errors, it derives directly from Exception.
    raise Exhausted("out of shared memory\nand more")


class Exhausted(Exception):
    pass


def test_the_gpu_benchmark_runs_at_toy_size(
    run_toy: Callable[[], dict[str, Any]], used: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_toy()
    # Every linear map won, since the first of all times is the least; the other ops already use what is the fastest.
    entries = json.loads(switches.SWITCHED_ON.read_text())
    maps = {tuple(entry["key"][2:]): entry["value"] for entry in entries}
    assert maps == {
        (activation, activation == "silu", 8, 21 // 8 * 8 if activation == "silu" else 32): [32, 32, 16, 4, 1, 1]
        for activation in reference.ACTIVATIONS
    } | {("gelu", False, 16, 24): [32, 32, 16, 4, 1, 1]}
    assert {entry["table"] for entry in entries} == {"LINEAR_ACT"}
    said = capsys.readouterr().out
    assert said.count(": on, ") == len(maps)
    # Sums in the products are measured after sums apart, and later times are larger.
    for kind in ("bfloat16", "float16"):
        assert f"\nSUMS_IN_PRODUCTS sm_90 {kind} 8 2 5: off, " in said
    assert "\nATTENTION sm_90 bfloat16 8 5 False: off, " in said
    assert "\nMOMENTS sm_90 8: off, " in said
    assert found["exit_code"] == 0
    accuracy, ops, speed = found[gpu.ACCURACY], found[gpu.OPS], found[gpu.TOWER]
    assert "failed" not in json.dumps(found)
    assert accuracy["ceilings"].keys() == {"copy_tb_s", "bf16_tflop_s", "fp64_tflop_s"}
    assert accuracy["fp32"]["sum_error"] < tolerances.ORACLE_FLOAT32
    assert accuracy["bf16"]["sum_error"] < 2 * tolerances.BFLOAT16_PASS
    assert accuracy["fp16"]["sum_error"] < tolerances.FLOAT16_PASS
    assert [row[0] for row in gpu.accuracy_table(accuracy)[1:4]] == ["fp32", "bf16", "fp16"]
    assert ops["wrong"] == []
    # The fused op is measured first, so it is the fastest.
    assert all(row["kept"] for row in ops["rows"].values())
    # Every cut of a linear map was right.
    for name, row in ops["rows"].items():
        if name.startswith("linear_act"):
            assert all("ms" in cut for cut in row["cuts"].values())
            assert row["fused"] == row["cuts"][row["cut"]]
            assert not row["in_use"]
            assert gpu.ops_table({"rows": {name: row}})[1][-1] == "faster, not yet in use"
    assert "cublaslt" in ops["rows"]["linear_act, gelu_tanh"]["cuts"]
    assert {"reference", "F.interpolate", "F.interpolate, compiled"} < ops["rows"]["preprocess"].keys()
    assert "reference, compiled" not in ops["rows"]["preprocess"]
    assert "reference, compiled" in ops["rows"]["add_moments"]
    assert [row[0] for row in gpu.ops_table(ops)[1:]] == list(ops["rows"])
    for name in ("attention_emit, heads and patches", "add_moments"):
        cuts = ops["rows"][name]["cuts"]
        assert len(cuts) > 1
        assert all(row["ms"] for row in cuts.values()), cuts
        # The cut in use is measured first, so it is the fastest.
        assert ops["rows"][name]["in_use"]
    assert {"FlashAttention", "reference"} < ops["rows"]["attention_emit, heads"].keys()
    assert "attention_emit, heads, 3 tokens" in ops["rows"]
    # What won is in use in the tower.
    assert gpu_tower.BEFORE in speed["rows"]
    assert {*switches.LINEAR_ACT} == {switches.key_of(entry["key"]) for entry in entries}
    assert speed["images_a_second"] == round(2000 / speed["rows"]["ours"]["ms"])
    assert speed["left_out"] == []
    for kind, tolerance in (("bf16", 2 * tolerances.BFLOAT16_PASS), ("fp16", tolerances.FLOAT16_PASS)):
        row = speed["rows"][f"{gpu_tower.IN_PRODUCTS}, {kind}"]
        assert row["plain"] == f"ours, residual sums apart, {kind}"
        assert 0 < row["errors"]["heads_error"] < tolerance
        # They are other passes.
        assert row["errors"]["heads_error"] != row["errors_apart"]["heads_error"]
    for name in ("ours", gpu_tower.OPEN_CLIP_COMPILED):
        took = list(speed["rows"][name]["kernels"].values())
        assert len(took) == 13
        assert took[:-1] == sorted(took[:-1], reverse=True)
        assert took[0] > 0
    assert speed["times_open_clip_compiled"] > 1
    assert speed["share_of_bf16"] == pytest.approx(
        speed["flops"] * 2 / speed["rows"]["ours"]["ms"] / 1e9 / speed["ceilings"]["bf16_tflop_s"], abs=1e-3
    )
    assert used


def test_the_gpu_benchmark_measures_everything_else_when_something_fails_or_is_wrong(
    run_toy: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = fused.layer_norm
    # They call the norm that is wrong below.
    monkeypatch.setattr(gpu_cases, "_residual_sums", lambda *arguments: [])
    monkeypatch.setattr(gpu_tower, "accuracy", fails)
    monkeypatch.setattr(gpu_tower, "_residual_sums", lambda *arguments: {})
    monkeypatch.setattr(fused, "layer_norm", lambda *arguments: 1.125 * right(*arguments))
    monkeypatch.setattr(moments, "add_moments_cut", fails)
    monkeypatch.setattr(reference, "pooled_attention", fails)
    monkeypatch.setattr(gpu_cases, "interpolated", fails)
    monkeypatch.setattr(gpu, "replayed", fails)
    monkeypatch.setattr(gpu_tower, "_open_clip", fails)
    found = run_toy()
    failed = "Exhausted: out of shared memory"
    assert found["exit_code"] == 1
    assert found[gpu.ACCURACY]["failed"] == failed
    ops = found[gpu.OPS]
    rows = ops["rows"]
    # An op that is wrong by an eighth is timed, is faster than its peers, and is not kept.
    assert rows["layer_norm"]["wrong"] == pytest.approx(0.125, rel=0.1)
    assert rows["layer_norm"]["times_faster"] > 1
    assert rows["add_moments"]["fused"] == {"failed": failed}
    assert rows["add_moments"]["reference"]["ms"]
    assert rows["preprocess"]["F.interpolate"] == {"failed": failed}
    assert rows["pooled_attention, patches"]["fused"]["ms"]
    assert ops["wrong"] == [
        f"pooled_attention, patches: {failed}",
        f"layer_norm: {rows['layer_norm']['wrong']}",
        f"add_moments: {failed}",
    ]
    not_kept = {name for name, row in rows.items() if not row["kept"]}
    assert not_kept == {"add_moments", "pooled_attention, patches", "layer_norm"}
    table = {row[0]: row[1:] for row in gpu.ops_table(ops)[1:]}
    assert table["add_moments"][0] == "failed"
    assert [row[-1] for row in table.values()].count("WRONG") == 3
    tower = found[gpu.TOWER]
    assert "failed" not in tower
    assert {name for name, row in tower["rows"].items() if "failed" in row} == {
        "ours, with open_clip's weights",
        "ours, as a CUDA graph",
        gpu_tower.OPEN_CLIP,
        gpu_tower.OPEN_CLIP_COMPILED,
        "same tower on PyTorch's ops, heads alone",
    }
    assert gpu.tower_headline(tower)[1].endswith("not yet measured")
    # Rows are printed at once, not only at the end.
    said = capsys.readouterr().out
    assert (
        said.index("\nadd_layer_norm: fused")
        < said.index("\nlayer_norm: fused")
        < said.index(f'"question": "{gpu.OPS}"')
    )


def test_the_gpu_benchmark_measures_the_peers_when_our_tower_fails(
    run_toy: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "attention_emit", fails)
    monkeypatch.setattr(gpu_ops, "run", lambda ceilings, left: {"rows": {}})
    found = run_toy()
    assert found["exit_code"] == 1
    assert found[gpu.ACCURACY]["bf16"]["failed"].startswith("Exhausted")
    assert found[gpu.TOWER]["failed"] == "ours: Exhausted: out of shared memory"
    assert found[gpu.TOWER]["rows"][gpu_tower.OPEN_CLIP_COMPILED]["ms"]


def test_a_float32_tower_beyond_its_limit_does_not_end_the_gpu_benchmark(
    run_toy: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tower, "FLOAT32_ERROR", 0.0)
    monkeypatch.setattr(gpu_ops, "run", lambda ceilings, left: {"rows": {}})
    monkeypatch.setattr(gpu_tower, "speed", lambda ceilings, left: {"images_a_second": 1})
    found = run_toy()
    assert found["exit_code"] == 1
    assert found[gpu.ACCURACY]["wrong"][0].startswith("fp32")
    assert "required" in gpu.accuracy_table(found[gpu.ACCURACY])[-1][0]
    assert found[gpu.TOWER]["images_a_second"]


def test_the_gpu_benchmark_skips_peers_that_might_not_compile_in_time(
    run_toy: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_tower, "_residual_sums", lambda *arguments: {})
    speed = gpu_tower.speed({"bf16_tflop_s": 1.0}, lambda: 39.0)
    assert speed["left_out"] == [gpu_tower.OPEN_CLIP_COMPILED, "ours, norms and MLPs compiled by PyTorch"]
    assert speed["rows"][gpu_tower.OPEN_CLIP]["ms"]


def test_the_peers_of_the_gpu_benchmark_do_the_same_work(run_toy: Callable[[], dict[str, Any]]) -> None:
    peers = [(case, peer) for case in gpu_cases.cases(3) for peer in case.peers.values()]
    assert {case.op for case, _ in peers} == {"attention_emit", "preprocess", "add_moments"}
    for case, (work, arguments) in peers:
        if case.op == "add_moments":
            added = [[value.clone() for value in case.arguments] for _ in range(2)]
            reference.add_moments(*added[0])
            work(*added[1])
            for wanted, found in zip(*(each[-2:] for each in added), strict=True):
                assert relative_error(found, wanted) < tolerances.FLOAT64
            continue
        wanted = getattr(reference, case.op)(*case.arguments)
        found = work(*arguments)
        if case.op == "attention_emit":
            assert relative_error(found[0].float(), wanted[0].float()) < tolerances.BFLOAT16_ROUNDING
            assert relative_error(found[1].heads, wanted[1].heads) < tolerances.BFLOAT16_ROUNDING
            continue
        assert found.shape == wanted.shape
        # The reference rounds grey levels twice and clips them in between, which matters for noise.
        assert relative_error(found, wanted) < 0.05


def test_the_gpu_benchmark_has_the_rows_of_the_forward_pass_in_fp16_too(
    run_toy: Callable[[], dict[str, Any]],
) -> None:
    peers = {
        dtype: {case.name: case.peers.keys() for case in gpu_cases.cases(2, dtype)}
        for dtype in (torch.bfloat16, torch.float16)
    }
    assert peers[torch.float16] == {
        f"{name}, fp16": each
        for name, each in peers[torch.bfloat16].items()
        if name not in ("add_moments", "preprocess")
    }


def test_the_gpu_benchmark_counts_the_pixels_that_a_crop_needs() -> None:
    # When halved, pixel i needs 8 source pixels from 2i - 3 on; the crop's columns are 12 to 27 of 40.
    assert gpu_cases.pixels_read((32, 80), 16) == 32 * (51 + 8 - 21)
    assert gpu_cases.pixels_read((80, 32), 16) == 32 * (51 + 8 - 21)


def test_the_gpu_benchmark_counts_float64_products(run_toy: Callable[[], dict[str, Any]]) -> None:
    cases = {case.name: case for case in gpu_cases.cases(2)}
    # Two images; two layers of one head; 8 numbers and 3 mean-and-bias terms.
    assert cases["add_moments"].flops == 2 * 2 * 2 * 11**2
    assert cases["add_moments"].dtype == torch.float64
    row = gpu_ops.measure(
        cases["add_moments"], {"": {"error": 0.0}}, {"fp64_tflop_s": 1e-6, "copy_tb_s": 1e6}, lambda: 0.0
    )
    assert row["bound"] == "arithmetic"
    # The ceiling above: a million operations a second.
    assert row["share_of_ceiling"] == pytest.approx(0.968 / row["fused"]["ms"], abs=1e-3)
