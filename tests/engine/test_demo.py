"""The demo runs whole, offline, and says what its numbers are worth."""

from pathlib import Path

import pytest

import headspan as hs
from headspan.analyse.verify import verify
from headspan.demo import draw_shards, run_demo
from headspan.errors import StoreError
from tests.conftest import relative_files


def test_the_demo_ends_in_a_report_that_first_says_the_weights_are_random(tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo")
    assert result.summary.images == 768
    assert result.summary.bad == []
    page = result.report.read_text(encoding="utf-8")
    body = page[page.index("<body") :]
    assert "random weights" in body[:2000]
    store = hs.open(tmp_path / "demo" / "run.zarr")
    assert verify(store).problems == ()
    spans = hs.read_spans(store)
    assert spans.indices.shape == (6, 6, 20)
    assert store.samples()["caption"][0].as_py().endswith("background")
    # A second demo takes the place of the first.
    run_demo(tmp_path / "demo")


def test_the_demos_shards_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    draw_shards(tmp_path / "a")
    draw_shards(tmp_path / "b")
    assert relative_files(tmp_path / "a") == relative_files(tmp_path / "b")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is not empty and no earlier demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
