"""Maps, contrasts, neighbours and rankings through a concept's heads, on hand-made stores and on the scores alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import jaccard_score, roc_auc_score

import headspan as hs
from headspan.explore.maps.segmentation import resized
from headspan.report.truth import truth_tables
from headspan.world import FACTORS, render
from headspan.world.checks import GroundTruth
from headspan.world.checks_json import ground_truth_as_json, ground_truth_from_json
from headspan.world.compared import DRAWS, other_heads
from headspan.world.ground_truth import check_ground_truth
from headspan.world.map_checks import DESCRIPTIONS, PER_FACTOR
from headspan.world.reference_scores import TRAINED, reference_scores
from headspan.world.scores import means_of, overlap, pixel_auc, rank_correlation, ranking_auc
from tests.engine.hand_made_scenes import HEADS, LAYERS, SCENES, hand_made_classes, hand_store, object_shares

EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
COLOUR, SHAPE = (0, 0), (1, 2)
WRITES, LABELS = {COLOUR: "colour", SHAPE: "shape"}, {COLOUR: "colours", SHAPE: "shapes"}
PAIRS = [each for each in SCENES if not each.repeated and each.count == 2]


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.world.ground_truth.embed_classes", hand_made_classes)
    zeros = dict.fromkeys(FACTORS, np.zeros(len(EVERY)))
    monkeypatch.setattr("headspan.world.ground_truth.spectra_scores", lambda *_: zeros)


@pytest.fixture
def truth(tmp_path: Path) -> GroundTruth:
    """The check of a store in which two heads write every object's colour and shape where the object is."""
    return check_ground_truth(hand_store(tmp_path / "s", WRITES, LABELS, by_object=1 / 16))


def test_the_map_of_a_colour_is_scored_against_the_objects_that_have_it(truth: GroundTruth) -> None:
    masks = render(SCENES, masks=True)[1]
    areas, precisions, overlaps = [], [], []
    for each, mask, shares in list(zip(SCENES, masks, object_shares(SCENES), strict=True))[:PER_FACTOR]:
        having = [thing.colour == each.things[0].colour for thing in each.things]
        wanted = np.isin(mask, 1 + np.flatnonzero(having))
        # The mean over the twelve colours is subtracted, so objects of other colours have negative evidence.
        weights = np.where(having, 11 / 12, -1 / 12)
        pixels = resized((weights @ shares).reshape(4, 4).astype(np.float32), (64, 64))
        areas.append(wanted.mean())
        precisions.append(roc_auc_score(wanted.ravel(), pixels.ravel()))
        positive = np.maximum(pixels, 0)
        overlaps.append(jaccard_score(wanted.ravel(), (positive > positive.mean()).ravel()))
    check = truth.text_maps[0]
    assert (check.concept, check.heads, check.images) == ("colours", (COLOUR,), PER_FACTOR)
    assert check.area == pytest.approx(np.mean(areas))
    assert check.auc.heads == pytest.approx(np.mean(precisions), abs=2e-3)
    assert check.overlap.heads == pytest.approx(np.mean(overlaps), abs=2e-3)
    assert check.auc.heads is not None
    # Patches of 16 pixels are coarse, and other objects share them.
    assert 0.9 < check.auc.heads < check.exact_auc + 1e-3
    # No other head writes colours.
    assert check.auc.every == pytest.approx(check.auc.heads, abs=2e-3)
    assert check.auc.others is not None
    assert (check.auc.others.low, check.auc.others.high) == (0.5, 0.5)
    # The map of another image knows nothing about where this image's objects are.
    assert check.auc.chance < 0.7


@pytest.mark.parametrize(("sign", "right"), [(1, 1), (-1, 0)])
def test_contrasts_have_the_right_signs_if_each_object_writes_its_own_value(
    sign: int, right: int, tmp_path: Path
) -> None:
    store = hand_store(tmp_path / "s", WRITES, LABELS, by_object=sign / 16)
    found = {check.concept: check for check in check_ground_truth(store).contrasts}
    assert list(found) == ["colours", "shapes", DESCRIPTIONS]
    for check in found.values():
        assert check.scenes == len(PAIRS)
        assert check.right.heads == check.right.every == check.ordered.heads == right
        # All signs are opposite, so a coin is right half of the time.
        assert (check.right.chance, check.ordered.chance) == (0.5, 0.5)
    others = found["colours"].right.others
    assert others is not None
    assert others.high == 0
    assert found[DESCRIPTIONS].heads == (COLOUR, SHAPE)


def test_contrasts_of_random_numbers_are_at_chance(tmp_path: Path) -> None:
    checks = check_ground_truth(hand_store(tmp_path / "s", {}, LABELS, noise=5)).contrasts
    for check in checks:
        assert check.right.heads is not None
        # Four standard deviations of a share of as many scenes.
        assert abs(check.right.heads - check.right.chance) < 4 * math.sqrt(0.25 / check.scenes)


def test_neighbours_stand_beside_those_of_the_embedding_and_of_other_heads(truth: GroundTruth) -> None:
    colours = truth.neighbours[0]
    assert colours.through_embedding is not None
    assert colours.through_others is not None
    # Each of the two writing heads knows one factor; embeddings know both, and the heads that write nothing know none.
    assert colours.chance < colours.through_embedding < colours.through_heads
    assert colours.through_others.mean < 2 * colours.chance


def test_the_head_that_writes_a_factor_hurts_it_and_is_ranked_first(tmp_path: Path) -> None:
    truth = check_ground_truth(hand_store(tmp_path / "s", WRITES, LABELS))
    found = {check.factor: check for check in truth.rankings}
    assert list(found) == list(FACTORS)
    assert found["colour"].hurting == (COLOUR,)
    assert found["shape"].hurting == (SHAPE,)
    for factor in ("colour", "shape"):
        assert found[factor].heads == len(EVERY)
        assert found[factor].auc["head pursuit"] == found[factor].auc["text shares"] == 1
        assert found[factor].auc["spectra"] == 0.5
        assert found[factor].correlation["spectra"] is None
    # No head writes a style, and the whole model does not name it.
    assert found["style"].hurting == ()
    assert set(found["style"].auc.values()) == {None}


def test_as_many_other_heads_are_drawn_and_none_if_there_are_too_few() -> None:
    drawn = other_heads(EVERY, [COLOUR, SHAPE])
    assert len(drawn) == DRAWS
    for heads in drawn:
        assert len(set(heads)) == 2
        assert not {COLOUR, SHAPE} & set(heads)
    assert drawn == other_heads(EVERY, [COLOUR, SHAPE])
    assert len({tuple(heads) for heads in drawn}) > 1
    assert other_heads(EVERY, EVERY[:4]) == other_heads(EVERY, []) == []


def pixels() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng(0)
    for shape in ((1, 3), (17, 5), (33, 47)):
        for evidence in (random.standard_normal(shape), random.integers(-2, 3, shape), np.ones(shape)):
            mask = random.random(shape) < 0.4
            mask.ravel()[:2] = True, False
            yield evidence.astype(np.float32), mask


def test_auc_and_overlap_are_those_of_scikit_learn() -> None:
    for evidence, mask in pixels():
        assert pixel_auc(evidence, mask) == pytest.approx(roc_auc_score(mask.ravel(), evidence.ravel()))
        positive = np.maximum(evidence, 0)
        chosen = positive > positive.mean()
        assert overlap(evidence, mask) == pytest.approx(jaccard_score(mask.ravel(), chosen.ravel()))
        flat, positives = evidence.ravel().astype(np.float64), mask.ravel()
        assert ranking_auc(flat, positives) == pytest.approx(roc_auc_score(positives, flat))


def test_scores_that_are_not_defined_say_so() -> None:
    evidence = np.ones((2, 2), np.float32)
    for mask in (np.zeros((2, 2), bool), np.ones((2, 2), bool)):
        assert np.isnan(pixel_auc(evidence, mask))
        assert ranking_auc(np.arange(4.0), mask.ravel()) is None
    assert np.isnan(overlap(evidence, np.zeros((2, 2), bool)))
    assert np.isnan(means_of(evidence, np.zeros((2, 2), bool), np.ones((2, 2), bool))).all()
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None


def test_rank_correlation_is_spearmans() -> None:
    random = np.random.default_rng(0)
    for first, second in (
        (random.standard_normal(37), random.standard_normal(37)),
        (random.integers(0, 4, 37).astype(np.float64), random.standard_normal(37)),
    ):
        assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0])


def test_a_result_is_read_back_from_json_and_one_of_an_earlier_version_without_what_it_lacks(
    truth: GroundTruth,
) -> None:
    stored = json.loads(json.dumps(ground_truth_as_json(truth)))
    assert ground_truth_from_json(stored) == replace(truth, high_by_chance={})
    for name in ("text_maps", "contrasts", "rankings"):
        del stored[name]
    for each in stored["neighbours"]:
        del each["through_embedding"], each["through_others"]
    earlier = ground_truth_from_json(stored)
    assert (earlier.text_maps, earlier.contrasts, earlier.rankings) == ((), (), ())
    assert earlier.neighbours[0].through_embedding is earlier.neighbours[0].through_others is None
    titles = [table.title for table in truth_tables(truth)]
    assert [table.title for table in truth_tables(earlier)] == [
        title
        for title in titles
        if not title.startswith(("Where the evidence for one value", "Which of two objects", "Which heads a factor"))
    ]
    assert len(titles) == len(truth_tables(earlier)) + 3
    stored["rankings"] = [asdict(truth.rankings[0]), {**asdict(truth.rankings[1]), "auc": {"other": 0.5}}]
    with pytest.raises(ValueError, match="rankings of two factors have other names"):
        ground_truth_from_json(stored)


def test_the_reports_tables_show_heads_all_heads_other_heads_and_chance() -> None:
    truth = replace(reference_scores()[TRAINED], controls={})
    tables = {table.title: table for table in truth_tables(truth)}
    for title, checks in (
        ("Where the evidence for one value is", truth.text_maps),
        ("Which of two objects a text means", truth.contrasts),
        ("Neighbours through the heads of a concept", truth.neighbours),
        ("Which heads a factor needs", truth.rankings),
    ):
        table = tables[title]
        assert "chance" in table.names
        assert len(table.rows) == len(checks)
        assert all(len(row) == len(table.names) for row in table.rows)
    maps = truth.text_maps[0]
    assert maps.auc.heads is not None
    words = [cell.words for cell in tables["Where the evidence for one value is"].rows[0]]
    assert words[0] == f"colours, {len(maps.heads)}"
    assert words[2].startswith(f"{100 * maps.auc.heads:.1f} | ")
    assert words[-2].startswith(f"{100 * maps.auc.chance:.1f} | ")
    assert words[-1].startswith(f"{100 * maps.exact_auc:.1f} | ")
    factor = tables["Which heads a factor needs"].rows[1]
    assert [cell.words for cell in factor[:2]] == ["shape", "L4.H2"]


def test_the_marks_of_the_reference_model_are_met_where_a_concept_has_heads_of_its_own() -> None:
    truth = reference_scores()[TRAINED]
    contrasts = {check.concept: check.right for check in truth.contrasts}
    for concept in ("colours", "textures", DESCRIPTIONS):
        assert contrasts[concept].heads is not None
        assert contrasts[concept].heads >= 0.85
    # Every score of maps through a concept's heads beats chance and as many other heads.
    for check in truth.text_maps:
        assert check.auc.heads is not None
        assert check.auc.others is not None
        assert check.auc.heads > max(check.auc.chance, check.auc.others.mean), check.concept
    for name in ("head pursuit", "spectra"):
        scores = [check.auc[name] for check in truth.rankings]
        assert np.mean([score for score in scores if score is not None]) > 0.95


def test_checking_reads_the_store_and_leaves_it_as_it_was(tmp_path: Path) -> None:
    store = hand_store(tmp_path / "s", WRITES, LABELS)
    before = sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*"))
    check_ground_truth(hs.open(store.path))
    assert sorted((path, path.stat().st_mtime_ns) for path in store.path.rglob("*")) == before
