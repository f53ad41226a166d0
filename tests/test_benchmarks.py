"""Benchmarks run in their toy form, and the README's table is what the recorded lines say."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import bench_memory, bench_store_bytes, bench_textspan, readme
from benchmarks.measure import benchmark


@pytest.mark.parametrize("module", [bench_textspan, bench_store_bytes], ids=lambda module: module.__name__)
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
