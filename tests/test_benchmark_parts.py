"""Benchmarks of several parts: what is recorded when a part is finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_describe_truth, measure
from benchmarks.parts import benchmark_parts

QUESTION = "a question of parts"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's results, with a line of another question."""
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    file = tmp_path / f"{measure.device_name()}.jsonl"
    file.write_text('{"question": "another", "sizes": 1}\n')
    return file


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in file.read_text().splitlines()]


def test_a_finished_part_joins_the_recorded_line_of_the_same_settings(results: Path) -> None:
    settings = {"sizes": {"steps": 3, "seeds": (1, 2)}, "language_model_sha256": "x"}
    parts = {"one": lambda work: {"found": 1}, "two": lambda work: {"work": str(work)}, "bad": lambda work: 1 / 0}
    benchmark_parts(QUESTION, settings, parts, ["--record", "--only", "one"])  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        benchmark_parts(  # type: ignore[arg-type]
            QUESTION, settings, parts, ["--record", "--only", "two", "--only", "bad", "--work", "w"]
        )
    before, found = lines(results)
    assert before == {"question": "another", "sizes": 1}
    assert found["parts"] == {"one": {"found": 1}, "two": {"work": "w"}}
    # Parts of other settings are another line.
    benchmark_parts(QUESTION, {**settings, "sizes": 4}, parts, ["--record", "--only", "one"])  # type: ignore[arg-type]
    assert [each["parts"] for each in lines(results)[1:]] == [found["parts"], {"one": {"found": 1}}]


def test_the_table_counts_found_phrases_near_misses_and_verdicts() -> None:
    planted = [{"class": "circle", "phrase": "share this"}, {"class": "star", "phrase": "on Monday"}]
    found = [
        {"class": "circle", "phrase": "share this", "verdict": "spurious", "adds": 1.0},
        {"class": "star", "phrase": "on Sunday", "verdict": "spurious", "adds": 0.2},
        {"class": "circle", "phrase": "on Monday", "verdict": "spurious", "adds": -0.1},
    ]
    preferred = {"pairs": 60}
    clip = {"planted": planted, "found": found, "preferred": preferred, "best": {"planted": planted, "found": []}}
    _, trained, best = bench_describe_truth.table({"parts": {"planted 4": clip}})
    assert [trained[0], best[0]] == ["planted CLIPs, trained", "planted CLIPs, best-of-N, untrained"]
    assert trained[1].startswith(
        "1 of 2 found (recall 50.0 %, by chance 5.0 %); 3 findings: 33.3 % are planted (precision; by chance 3.3 %), 1 "
    )
    # The phrase, days for stars, and days for circles.
    assert "so 2 of 3 pairs of a class and a kind are planted; the CLIP prefers 33.3 % of the findings" in trained[1]
    assert trained[1].endswith("called spurious: 1 of 1 phrases, called non-visual: 0 of 1 words")
    assert best[1].startswith("0 of 2 found (recall 0.0 %, by chance 0.0 %); called spurious: 0 of 1")
