"""The demo runs whole, offline, and says what its numbers are worth."""

import json
from pathlib import Path

import pytest

import headspan as hs
from headspan.analyse.verify import verify
from headspan.demo import run_demo
from headspan.errors import StoreError


def test_the_demo_ends_in_a_report_that_first_says_the_weights_are_random(tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo")
    assert result.summary.images == 1000
    assert result.summary.bad == []
    page = result.report.read_text(encoding="utf-8")
    body = page[page.index("<body") :]
    assert "random weights" in body[:2000]
    store = hs.open(tmp_path / "demo" / "run.zarr")
    assert verify(store).problems == ()
    spans = hs.read_spans(store)
    assert spans.indices.shape == (6, 6, 20)
    samples = store.samples()
    assert all(samples["caption"].to_pylist())
    assert json.loads(samples["metadata"][7].as_py())["index"] == 7
    # A second demo takes the place of the first.
    run_demo(tmp_path / "demo")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is not empty and no earlier demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
