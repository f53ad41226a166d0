"""The report's section on features: shown with a run of features only, and its numbers are those of the run."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.errors import SettingsError
from headspan.features.naming import name_features
from headspan.features.saved import save_scores
from headspan.features.scores.result import FeatureScores
from headspan.report.collect import write_report
from headspan.report.features import choose_features, shown_features
from headspan.store.results import only_run, runs
from headspan.store.write.removal import remove_runs
from headspan.texts.stored import stored_pool
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.test_labels_and_ccs import HEADS, keep
from tests.engine.test_report import Outline

FEATURES = 44


@pytest.fixture(scope="module")
def featured(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[hs.Store, FeatureScores]:
    """A store with a TEXTSPAN run and named scores of 44 features."""
    store = hs.open(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("featured") / "run.zarr"))
    keep(store, HEADS)
    directions = np.random.default_rng(2).normal(size=(FEATURES, store.joint))
    scores = replace(hand_made_scores(directions, store.images), active=np.full(FEATURES, 30))
    return store, name_features(store, scores, stored_pool(store, "hand"), 2, saved=True)


def test_the_section_is_there_with_a_run_of_features_only(
    featured: tuple[hs.Store, FeatureScores], tmp_path: Path
) -> None:
    store, scores = featured
    page = write_report(store, tmp_path / "with.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert outline.complaints == []
    assert "Sparse features" in outline.body_texts()
    assert "The strongest image-dominant features" in outline.body_texts()
    # Each picture that a card shows is in the page once.
    cards = re.findall(r"<article>.*?</article>", page, re.S)
    assert len(cards) == 12
    for place in re.findall(r'"pic p(\d+)"', "".join(cards)):
        assert page.count(f".p{place}{{background-image") == 1
    names = {name for found in scores.names for name in found}
    assert all(re.search(r"<q>(.*?)</q>", card)[1] in names for card in cards)  # type: ignore[index]
    bare = Path(shutil.copytree(store.path, tmp_path / "bare.zarr"))
    remove_runs(bare, "features/hand")
    without = Outline(write_report(hs.open(bare), tmp_path / "without.html").read_text(encoding="utf-8"))
    assert "Sparse features" not in without.body_texts()


def test_a_store_without_text_spans_has_a_report_of_its_features(
    featured: tuple[hs.Store, FeatureScores], tmp_path: Path
) -> None:
    beside = write_report(featured[0], tmp_path / "beside.html").read_text(encoding="utf-8")
    store = hs.open(shutil.copytree(featured[0].path, tmp_path / "run.zarr"))
    name = only_run(store, "textspan", None)
    remove_runs(
        Path(store.path), [f"{kind}/{name}" for kind in ("textspan", "labels", "ccs") if name in runs(store, kind)]
    )
    page = write_report(hs.open(store.path), tmp_path / "alone.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert (outline.complaints, outline.open) == ([], [])
    # The section is the same, less the places of its pictures, which the heads' pictures share.
    sections = (re.search(r'<section[^>]* id="features">.*?</section>', each, re.S) for each in (beside, page))
    first, second = (re.sub(r"pic p\d+", "", found[0]) for found in sections if found)
    assert first == second
    assert "Its attention heads are not described yet: run headspan textspan." in " ".join(outline.body_texts())
    assert "Concept consistency" not in outline.body_texts()
    assert "--run" not in page
    with pytest.raises(SettingsError, match="has no textspan run, so no head is described; leave --heads out"):
        write_report(hs.open(store.path), tmp_path / "alone.html", heads="best3")


def test_the_histogram_counts_features_with_enough_pairs_and_the_table_counts_all(
    featured: tuple[hs.Store, FeatureScores],
) -> None:
    store, scores = featured
    few = replace(scores, active=np.where(np.arange(FEATURES) < 10, 19, 30))
    shown = shown_features(choose_features(store, few), {})
    values = scores.mds[10:]
    for place, each in enumerate(shown.bins):
        low, high = place / 20, (place + 1) / 20
        assert each.count == sum(low <= value < high for value in values if np.isfinite(value)), each.range
    assert max(max(each.height, each.shuffled_height) for each in shown.bins) == 100
    assert sum(each.shuffled for each in shown.bins) == np.isfinite(scores.shuffled_mds[10:]).sum()
    assert [(each.name, each.by_interval) for each in shown.classes] == [
        ("image-dominant", 11),
        ("cross-modal", 11),
        ("text-dominant", 11),
        ("undecided", 11),
    ]
    assert scores.name_mixture_p is not None
    named = [scores.name_mixture_p[place::4] <= 0.05 for place in (2, 1, 0, 3)]
    assert [each.named for each in shown.classes] == [int(each.sum()) for each in named]


def test_the_strongest_features_have_the_largest_codes(featured: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = featured
    shown = shown_features(choose_features(store, scores), {})
    energy = scores.image_square + scores.text_square
    for place, known in zip((2, 1, 0), shown.classes, strict=False):
        wanted = sorted(range(place, FEATURES, 4), key=lambda feature: -energy[feature])[:4]
        assert [each.number for each in known.features] == wanted
        for feature in known.features:
            assert feature.name == scores.names[feature.number][0]
            assert len(feature.shots) == 4


def test_features_of_images_alone_are_shown_without_mds(featured: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = featured
    nothing = np.full(FEATURES, np.nan)
    alone = replace(
        scores,
        run="heads",
        mds=nothing,
        mds_interval=np.full((FEATURES, 2), np.nan),
        shuffled_mds=nothing,
        class_by_interval=np.full(FEATURES, -1, np.int8),
        class_by_spread=np.full(FEATURES, -1, np.int8),
    )
    shown = shown_features(choose_features(store, alone), {})
    assert shown.bins == ()
    assert len(shown.classes[-1].features) == 4
    assert any(each.startswith("These features are of a space that texts are not in") for each in shown.remarks)
    save_scores(store, alone)
    remove_runs(store, "features/heads")
