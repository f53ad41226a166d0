"""Recorded rows of the GPU benchmark switch kernels on, and only those rows do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton's wheels exist for Linux only")

from benchmarks import gpu, gpu_switches, measure
from headspan_kernels import attention, linear, moments, switches
from headspan_kernels.switches import Blocks, Cut, Tiles

WIDE, USUAL, KEPT = Cut(128, 256, 64, 8, 3, 1), Blocks(64, 32, 4, 3), Blocks(128, 64, 8, 1, True, 255)
LINEAR = ("LINEAR_ACT", [[9, 0], "bfloat16", "gelu", False, 1024, 4096])
ROWS = ("ATTENTION", [[9, 0], "bfloat16", 64, 257, False])


def row(switch: Any, cuts: dict[Any, float | None], left_out: tuple[str, ...] = (), **peers: float) -> dict[str, Any]:
    """A recorded row: milliseconds by cut, or None for a cut that is wrong, and of peers."""
    found = {str(tuple(cut)): {"failed": 0.5} if ms is None else {"ms": ms} for cut, ms in cuts.items()}
    others = {name.replace("_", ", "): {"ms": ms} for name, ms in peers.items()}
    return {"switch": switch, "cuts": found, "left_out": list(left_out), "fused": {"ms": 0.0}, **others}


def line(date: str = "2026-12-01", **rows: dict[str, Any]) -> dict[str, Any]:
    return {"question": gpu.OPS, "date": date, "device": "nvidia-h200", "commit": "abc", "rows": rows}


def word_of(*rows: dict[str, Any]) -> str:
    (verdict,) = gpu_switches.verdicts(line(**{str(number): each for number, each in enumerate(rows)}))
    return verdict.word


def test_what_is_in_use_is_what_the_recorded_rows_allow() -> None:
    """If this fails, run `python -m benchmarks.gpu_switches` and commit the file."""
    held = json.loads(switches.SWITCHED_ON.read_text(encoding="utf-8"))
    assert held == gpu_switches.entries(gpu_switches.recorded())


def test_a_linear_map_is_on_only_if_a_right_cut_beats_everything_that_pytorch_can_do() -> None:
    peers = {"reference": 1.5, "reference_compiled": 1.0}
    other = Cut(128, 128, 64, 4, 3, 2)
    assert word_of(row(LINEAR, {WIDE: 0.9, other: 0.95}, **peers)) == "on"
    assert word_of(row(LINEAR, {WIDE: 0.99}, **peers)) == "off"
    assert word_of(row(LINEAR, {WIDE: None, other: 1.1}, **peers)) == "off"
    assert word_of(row(LINEAR, {WIDE: None}, **peers)) == "open"
    assert word_of(row(LINEAR, {WIDE: 0.9}, ("reference, compiled",), reference=1.5)) == "open"
    assert word_of(row(LINEAR, {WIDE: 0.9})) == "open"


def test_attention_takes_the_cut_with_the_least_time_over_all_that_a_tower_may_emit() -> None:
    both = row(ROWS, {USUAL: 0.40, KEPT: 0.30}, reference=0.5), row(ROWS, {USUAL: 0.40, KEPT: 0.45}, reference=0.9)
    (verdict,) = gpu_switches.verdicts(line(heads=both[0], patches=both[1]))
    assert verdict.entry is not None
    assert verdict.entry["value"] == [128, 64, 8, 1, True, 255]
    assert verdict.entry["rows"] == ["heads", "patches"]
    assert (verdict.entry["ms"], verdict.entry["instead_of_ms"]) == (0.75, 0.8)
    assert word_of(both[0], row(ROWS, {USUAL: 0.40, KEPT: 0.50}, reference=0.9)) == "off"
    # Wrong in one of the rows.
    assert word_of(both[0], row(ROWS, {USUAL: 0.40, KEPT: None}, reference=0.9)) == "off"
    assert word_of(row(ROWS, {USUAL: None, KEPT: 0.30}, reference=0.9)) == "open"
    # PyTorch's attention as the engine calls it; compiled, it is a peer only.
    (verdict,) = gpu_switches.verdicts(line(heads=row(ROWS, {USUAL: 0.4, KEPT: 0.39}, reference=0.3)))
    assert verdict.entry is not None
    assert verdict.entry["value"] == "reference"
    assert word_of(row(ROWS, {USUAL: 0.4, KEPT: 0.39}, reference=0.5, reference_compiled=0.3)) == "on"


@pytest.mark.parametrize("table", ["TOWER_GRAPH", "SUMS_IN_PRODUCTS"])
def test_a_pass_runs_in_another_way_only_where_it_is_faster_so(table: str) -> None:
    key = (table, [[9, 0], "float16", 768, 12, 50])

    def verdict(other: dict[str, Any], plain: dict[str, Any]) -> gpu_switches.Verdict:
        rows = {"the plain row": plain, "another": {**other, "switch": key, "plain": "the plain row"}}
        found = {"question": gpu.PRECOMPUTE, "models": {"ViT-B-32": rows}}
        if table == "SUMS_IN_PRODUCTS":
            found = {"question": gpu.TOWER, "rows": rows}
        (only,) = gpu_switches.verdicts({**line(), **found})
        return only

    on = verdict({"ms": 9.0}, {"ms": 10.0})
    assert (on.word, on.entry and on.entry["value"]) == ("on", True)
    assert verdict({"ms": 9.9}, {"ms": 10.0}).word == "off"
    assert verdict({"failed": "out of memory"}, {"ms": 10.0}).word == "open"
    assert verdict({"ms": 9.0}, {"failed": "out of memory"}).word == "open"
    assert str(on) == f"{table} sm_90 float16 768 12 50: on, 9 ms by True, 10 ms by the plain pass"
    worse = verdict({"ms": 9.0, "less_exact": "heads_error"}, {"ms": 10.0})
    assert (worse.word, worse.why) == ("off", "less exact than the plain pass: heads_error")
    assert on.entry is not None
    with switches.restored():
        switches.switch_on([on.entry])
        assert getattr(switches, table) == {((9, 0), "float16", 768, 12, 50): True}


@pytest.mark.usefixtures("tables")
def test_what_won_is_used_for_the_rows_that_the_same_run_measures_later() -> None:
    key = ((9, 0), "bfloat16", 1024, 24, 257)

    def use(**rows: dict[str, Any]) -> bool:
        rows["faster"] = {"switch": ("SUMS_IN_PRODUCTS", key), "plain": "apart", "ms": 80.0, **rows.get("faster", {})}
        gpu_switches.use_what_won(rows)
        return key in switches.SUMS_IN_PRODUCTS

    assert not use(apart={"failed": "out of memory"})
    assert use(apart={"ms": 84.0})
    # Nothing new is known.
    assert use(apart={"failed": "out of memory"})
    assert not use(apart={"ms": 84.0}, faster={"less_exact": "heads_error"})
    assert use(apart={"ms": 84.0})
    assert not use(apart={"ms": 81.0})


def assert_switched_on(tiles: Tiles) -> None:
    cut = switches.LINEAR_ACT[(9, 0), "bfloat16", "gelu", False, 1024, 4096]
    blocks = switches.ATTENTION[(9, 0), "bfloat16", 64, 257, False]
    assert (cut, blocks, switches.MOMENTS) == (WIDE, KEPT, {((9, 0), 64): tiles})
    assert (type(cut), type(blocks), type(switches.MOMENTS[(9, 0), 64])) == (Cut, Blocks, Tiles)


@pytest.mark.usefixtures("tables")
def test_recording_winning_rows_switches_kernels_on_and_a_later_losing_row_off_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(switches, "SWITCHED_ON", tmp_path / "switched_on.json")
    usual, other = moments.candidates(64)[:2]
    of_moments = ("MOMENTS", [[9, 0], 64])
    won = line(
        gelu=row(LINEAR, {WIDE: 0.9}, reference=1.0),
        heads=row(ROWS, {USUAL: 0.4, KEPT: 0.3}, reference=0.5),
        moments=row(of_moments, {usual: 0.07, other: 0.05}, reference=0.3),
        # An op without a switch.
        norm={"fused": {"ms": 0.1}, "reference": {"ms": 0.2}, "left_out": [], "kept": True, "in_use": True},
        sums={"fused": {"ms": 0.1}, "reference": {"ms": 0.09}, "left_out": [], "kept": False, "in_use": False},
        preprocess={"fused": {"failed": "why"}, "left_out": [], "in_use": True},
    )
    with (tmp_path / "nvidia-h200.jsonl").open("w") as file:
        file.write(json.dumps(won) + "\n" + json.dumps({"question": "another", "date": "2026-12-02"}) + "\n")
    said = gpu_switches.decide(won)
    assert (
        "LINEAR_ACT sm_90 bfloat16 gelu False 1024 4096: on, 0.9 ms by (128, 256, 64, 8, 3, 1), 1 ms by PyTorch" in said
    )
    assert "\nnorm: in use, faster: 0.1 ms, 0.2 ms by PyTorch at its best\n" in said
    assert "\nsums: not in use, not faster: 0.1 ms, 0.09 ms by PyTorch at its best\n" in said
    assert "\npreprocess: in use, not measured, or wrong\n" in said
    assert said.endswith(f"3 entries in {switches.SWITCHED_ON}")
    # Both this process and later ones use them.
    for entries in (None, json.loads(switches.SWITCHED_ON.read_text())):
        if entries is not None:
            switches.switch_on([])
            assert not switches.LINEAR_ACT
            switches.switch_on(entries)
        assert_switched_on(other)
    with switches.without_entries():
        assert not switches.MOMENTS
        assert {**switches.BY_HAND} == switches.ATTENTION
    assert_switched_on(other)
    lost = line("2026-12-03", gelu=row(LINEAR, {WIDE: 1.1}, reference=1.0))
    later = gpu_switches.entries([lost, won])
    assert [entry["table"] for entry in later] == ["ATTENTION", "MOMENTS"]


def test_the_cuts_of_entries_are_candidates() -> None:
    """An entry of a cut that is not measured any more is not used either."""
    for (_, kind, head_dim, tokens, _), blocks in switches.ATTENTION.items():
        assert kind in ("bfloat16", "float16")
        if not isinstance(blocks, str):
            assert blocks in attention.candidates(head_dim, switches.torch.bfloat16, tokens)
    for (_, _, _, gated, _, _), cut in switches.LINEAR_ACT.items():
        assert cut == "cublaslt" or cut in linear.candidates(gated)
