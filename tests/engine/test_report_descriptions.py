"""The report's section on descriptions: there with a run of them only; its numbers and words are those of the run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import headspan as hs
from headspan.describe.descriptions.saved import save_descriptions
from headspan.describe.rewards.target import Target
from headspan.report.collect import write_report
from headspan.report.describing import choose_descriptions, compared, runs_shown, shown_descriptions
from headspan.store.write.removal import remove_runs
from tests.engine.hand_made_descriptions import ROWS, hand_made_descriptions
from tests.engine.test_labels_and_ccs import HEADS, keep
from tests.engine.test_report import Outline


@pytest.fixture(scope="module")
def described(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """A store with a TEXTSPAN run and two runs of descriptions."""
    store = hs.open(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("described") / "run.zarr"))
    keep(store, HEADS)
    save_descriptions(store, hand_made_descriptions(class_rows=store.rows[:6].reshape(2, 3)))
    save_descriptions(store, hand_made_descriptions(False, run="a-head", target=Target(((2, 1),)), quality={}))
    return store


def test_the_section_is_there_with_a_run_of_descriptions_only(described: hs.Store, tmp_path: Path) -> None:
    page = write_report(described, tmp_path / "with.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.complaints == []
    assert "What the model wants to hear" in outline.body_texts()
    cards = re.findall(r"<article>.*?</article>", page, re.S)
    assert len(cards) == 4
    # Each picture that a card shows is in the page once.
    places = re.findall(r'"pic p(\d+)"', "".join(cards))
    assert len(places) == 6
    assert all(page.count(f".p{place}{{background-image") == 1 for place in places)
    # Descriptions are texts, whatever they hold.
    assert "it is &lt;b&gt;used&lt;/b&gt; in games &amp; parks" in page
    bare = Path(shutil.copytree(described.path, tmp_path / "bare.zarr"))
    remove_runs(bare, ["descriptions/hand", "descriptions/a-head"])
    without = Outline(write_report(hs.open(bare), tmp_path / "without.html").read_text(encoding="utf-8"))
    assert "What the model wants to hear" not in without.body_texts()


def test_a_store_with_descriptions_only_has_a_report_of_them(toy_run: Any, tmp_path: Path) -> None:
    store = hs.open(shutil.copytree(toy_run.path, tmp_path / "run.zarr"))
    save_descriptions(store, hand_made_descriptions(class_rows=store.rows[:6].reshape(2, 3)))
    page = write_report(store, tmp_path / "report.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert (outline.complaints, outline.open) == ([], [])
    assert "What the model wants to hear" in outline.body_texts()
    places = re.findall(r'"pic p(\d+)"', page)
    assert sorted(map(int, places)) == list(range(6))
    assert f"store of {store.images:,} images" in " ".join(outline.body_texts())


def test_a_run_is_shown_with_its_figures_verdicts_and_best_descriptions(described: hs.Store) -> None:
    shown = shown_descriptions(choose_descriptions(described, hand_made_descriptions()), {})
    assert shown.columns == ("trained", "untrained", "best of 64", "class names", "chance")
    figures = {name: values for name, _, values in shown.figures}
    assert figures["reward"] == ("21.90 (20.50 to 23.00)", "18.50", "21.00", "–", "–")
    assert figures["zero-shot accuracy"] == ("87.5\u202f%", "–", "–", "75.0\u202f%", "50.0\u202f%")
    total = sum(row[3] for row in ROWS)
    assert {each.name: each.count for each in shown.verdicts} == {
        "visual": 12,
        "non-visual": 1,
        "spurious": 2,
        "undecided": 3,
    }
    assert sum(each.width for each in shown.verdicts) == pytest.approx(100, abs=0.02)
    # Chance would give 0.4 · 0.6 + 0.4 · 0.2 + 0.2 · 0.2 = 0.36, so κ is 0.44 / 0.64.
    assert shown.agreement == ("judge-1 and ann on 80\u202f% of 5 texts, κ 0.69",)
    assert len(shown.ranges) == 4
    assert shown.attributes == (("shape", f"{100 * 12 / total:.0f}\u202f%"), ("use", f"{100 / total:.0f}\u202f%"))
    for number, card in enumerate(shown.classes):
        own = sorted((row for row in ROWS if row[1] == number), key=lambda row: -row[5])
        assert [each.text for each in card.best] == [row[0] for row in own][:3]
        assert [each.times for each in card.best] == [row[3] for row in own][:3]
    assert "1 description of 5 filled the context" in shown.remarks[0]


def test_a_curve_goes_from_the_first_to_the_last_step_whose_number_is_known(described: hs.Store) -> None:
    reward, kl = shown_descriptions(choose_descriptions(described, hand_made_descriptions()), {}).curves
    assert (reward.low, reward.high, reward.last) == ("18.50", "21.90", "21.90 at step 3")
    points = [tuple(map(float, point.split(","))) for point in reward.points.split()]
    assert [across for across, _ in points] == [0, 50, 100]
    # The highest value lies at the top, and the one between them where its share of the range is.
    assert [down for _, down in points] == pytest.approx([38, 38 - 36 * 1.5 / 3.4, 2], abs=0.01)
    assert kl.last == "1.50 at step 2"


def test_equal_answers_to_several_questions_are_shown_once(described: hs.Store) -> None:
    texts = ("red", "red", "blue", "green", "red")
    shown = shown_descriptions(choose_descriptions(described, hand_made_descriptions(texts=texts)), {})
    assert [each.text for each in shown.classes[0].best] == ["red", "blue"]
    assert shown.classes[0].best[0].reward == "24.00"


def test_all_runs_stand_side_by_side_and_trained_ones_are_shown_in_full(described: hs.Store) -> None:
    whole = hand_made_descriptions()
    head = hand_made_descriptions(False, run="a-head", target=Target(((2, 1),)), quality={})
    plain = hand_made_descriptions(False, run="a-plain", adapter_sha256=None, quality={"reward": 1.5})
    rows = compared([head, plain, whole])
    assert [(each.run, each.model, each.target, each.figures[0]) for each in rows] == [
        ("a-head", "small-model", "L2.H1", "–"),
        ("a-plain", "small-model, untrained", "the whole embedding", "1.50"),
        ("hand", "small-model", "the whole embedding", "21.90 (20.50 to 23.00)"),
    ]
    assert [each.run for each in runs_shown([head, plain, whole])] == ["hand", "a-head"]
    assert [each.run for each in runs_shown([plain])] == ["a-plain"]
    remark = shown_descriptions(choose_descriptions(described, plain), {}).remarks[0]
    assert remark == "Nobody has inspected these descriptions: run headspan describe inspect."
