"""The demo runs whole and offline, on weights that mean something: every claim of its report can fail here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import headspan as hs
from headspan.analyse.ground_truth import FACTOR_OF, GroundTruth
from headspan.analyse.verify import verify
from headspan.demo import DemoResult, run_demo
from headspan.errors import StoreError


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(tmp_path_factory.mktemp("demo") / "out")


@pytest.fixture
def truth(demo: DemoResult) -> GroundTruth:
    return demo.truth


def test_the_demo_leaves_a_sound_store_of_scenes_and_a_report_that_leads_with_the_truth(demo: DemoResult) -> None:
    assert demo.summary.images == 2000
    assert demo.summary.bad == []
    store = hs.open(demo.summary.path)
    assert verify(store).problems == ()
    samples = store.samples()
    assert all(samples["caption"].to_pylist())
    assert json.loads(samples["metadata"][7].as_py())["split"] == "held_out"
    page = demo.report.read_text(encoding="utf-8")
    assert "random weights (" not in page
    lead = page.index("Held against the truth")
    assert lead < page.index("The run</h2>")
    for factor, each in demo.truth.zero_shot.items():
        assert f"{100 * each.share:.1f}" in page[lead : lead + 20_000], factor
    assert hs.read_ground_truth(store, "world") == demo.truth


@pytest.mark.parametrize(
    ("factor", "least"),
    [
        ("colour", 0.95),
        ("shape", 0.90),
        ("texture", 0.85),
        ("count", 0.80),
        ("position", 0.85),
        ("size", 0.85),
    ],
)
def test_the_reference_model_names_a_factor_of_held_out_combinations(
    truth: GroundTruth, factor: str, least: float
) -> None:
    each = truth.zero_shot[factor]
    assert each.share >= least
    assert each.chance < 0.5
    assert each.images > 500


def test_concepts_have_high_heads_of_their_own_and_with_random_weights_none_has(truth: GroundTruth) -> None:
    own = {concept for concept, heads in truth.high_heads.items() if heads}
    assert len(own) >= 3
    assert truth.high_heads_at_random is not None
    assert sum(truth.high_heads_at_random.values()) == 0


def test_neighbours_through_the_heads_of_three_concepts_share_the_factor_more_often(truth: GroundTruth) -> None:
    better = [each.concept for each in truth.neighbours if each.through_heads > each.through_all]
    assert len(better) >= 3, truth.neighbours
    # Of the three, each at least half as often again.
    assert sum(each.through_heads > 1.5 * each.through_all for each in truth.neighbours) >= 3
    assert all(each.through_heads > each.chance for each in truth.neighbours)


def test_maps_of_a_thing_fall_on_it(truth: GroundTruth) -> None:
    assert truth.maps.images >= 200
    assert truth.maps.mass_inside > 3 * truth.maps.area
    assert truth.maps.average_precision > 3 * truth.maps.area


def test_ablating_the_heads_of_a_concept_hurts_its_own_factor_most(truth: GroundTruth) -> None:
    # How much the own factor loses, of those concepts where it loses half as much again as any other.
    hurt = []
    for each in truth.ablations:
        lost = {factor: truth.zero_shot[factor].share - share for factor, share in each.accuracies.items()}
        own = lost.pop(FACTOR_OF[each.concept])
        # Backgrounds have two factors, kind and colour.
        others = [share for factor, share in lost.items() if not (each.concept == "backgrounds" and "back" in factor)]
        if own > 1.5 * max(others):
            hurt.append(own)
    assert sum(own > 0.1 for own in hurt) >= 4, truth.ablations


def test_a_second_demo_takes_the_place_of_the_first_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run.zarr").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="is not empty and no earlier demo"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
