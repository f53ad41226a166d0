"""The ground-truth check, on stores made by hand whose right answers are known (hand_made_scenes.py)."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.errors import SettingsError
from headspan.explore.maps.segmentation import resized
from headspan.report.truth import truth_tables
from headspan.store import results
from headspan.tasks.zero_shot import Accuracy
from headspan.world import FACTORS, prompts, render
from headspan.world.checks import FACTOR_OF, Ablation, GroundTruth, MapCheck
from headspan.world.checks_json import ground_truth_from_json
from headspan.world.ground_truth import check_ground_truth, read_ground_truth
from headspan.world.scores import chance_of_same, map_scores, precision_at, same_value
from tests.engine.hand_made_scenes import PATCHES, SCENES, VALUES, hand_made_classes, hand_store
from tests.engine.test_labels_and_ccs import HEADS as LABELLED
from tests.engine.test_labels_and_ccs import keep


@pytest.fixture(autouse=True)
def _without_a_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.world.ground_truth.embed_classes", hand_made_classes)
    # The stores have no model, from which spectra are read.
    monkeypatch.setattr("headspan.world.ground_truth.spectra_scores", lambda *_: dict.fromkeys(FACTORS, np.zeros(6)))


def known(factor: str) -> list[str]:
    """The values of the scenes that have one."""
    return [value for value in VALUES[factor] if value is not None]


def chance(factor: str) -> float:
    """The share of the most common value."""
    return max(Counter(known(factor)).values()) / len(known(factor))


def best_precision(factor: str) -> float:
    """Precision@10 where all images of one value are nearer than all others: there may be fewer than ten of them."""
    counts = Counter(known(factor))
    return sum(min(10, counts[value] - 1) / 10 for value in known(factor)) / len(known(factor))


def sampling_error(share: float, count: int) -> float:
    """Four standard deviations of a share of `count` independent draws."""
    return 4 * float(np.sqrt(share * (1 - share) / count))


COLOUR_AND_SHAPE = {(0, 0): "colour", (1, 2): "shape"}
RIGHT_LABELS = {(0, 0): "colours", (1, 2): "shapes"}


def test_heads_that_each_write_one_factor_get_full_scores_for_it_and_none_for_others(tmp_path: Path) -> None:
    truth = check_ground_truth(hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS), save=True)
    for factor in FACTORS:
        found = truth.zero_shot[factor]
        assert (found.chance, found.images) == (chance(factor), len(known(factor)))
        # All texts of a factor that no head writes have the same vector, so the first value is named.
        first = Counter(known(factor))[next(iter(prompts(factor)))] / len(known(factor))
        assert found.share == (1 if factor in ("colour", "shape") else first)
    assert truth.high_heads == {"colours": 1, "shapes": 1}
    for check, factor in zip(truth.neighbours, ("colour", "shape"), strict=True):
        assert FACTOR_OF[check.concept] == factor
        assert check.through_heads == pytest.approx(best_precision(factor))
        # Through all heads, neighbours share the other factor too.
        assert check.chance < check.through_all < check.through_heads
        counts = Counter(known(factor)).values()
        pairs = len(known(factor)) * (len(known(factor)) - 1)
        assert check.chance == pytest.approx(sum(n * (n - 1) for n in counts) / pairs)
        assert check.queries == len(known(factor))
    for ablation, factor in zip(truth.ablations, ("colour", "shape"), strict=True):
        losses = ablation.losses(truth.zero_shot)
        # Without its head, every image is given the most common value.
        assert losses.pop(factor) == pytest.approx(1 - chance(factor))
        assert set(losses.values()) == {0}
        assert ablation.own_and_other_loss(truth.zero_shot) == (pytest.approx(1 - chance(factor)), 0)


def test_neighbours_through_all_heads_score_as_through_the_only_writing_head(tmp_path: Path) -> None:
    truth = check_ground_truth(hand_store(tmp_path / "s", {(1, 1): "style"}, {(1, 1): "styles"}), save=True)
    (check,) = truth.neighbours
    assert check.heads == ((1, 1),)
    assert check.through_all == check.through_heads == pytest.approx(best_precision("style"))


def test_random_outputs_score_at_chance(tmp_path: Path) -> None:
    labels = {(0, head): concept for head, concept in enumerate(("colours", "shapes", "backgrounds"))}
    truth = check_ground_truth(hand_store(tmp_path / "s", {}, labels, noise=3), save=True)
    for factor, found in truth.zero_shot.items():
        assert found.share < found.chance + sampling_error(found.chance, found.images), factor
    for check in truth.neighbours:
        for precision in (check.through_heads, check.through_all):
            assert abs(precision - check.chance) < sampling_error(check.chance, check.queries)
    for ablation in truth.ablations:
        own, _ = ablation.own_and_other_loss(truth.zero_shot)
        assert abs(own) < sampling_error(0.1, len(known("colour")))


@pytest.mark.parametrize(("second", "lost"), [("colours", True), ("styles", False)])
def test_a_factor_that_two_heads_write_is_lost_only_if_both_are_ablated(
    second: str, lost: bool, tmp_path: Path
) -> None:
    writes = {(0, 0): "colour", (1, 0): "colour"}
    truth = check_ground_truth(hand_store(tmp_path / "s", writes, {(0, 0): "colours", (1, 0): second}), save=True)
    assert truth.zero_shot["colour"].share == 1
    colours = truth.ablations[0]
    assert colours.concept == "colours"
    own, other = colours.own_and_other_loss(truth.zero_shot)
    assert own == (pytest.approx(1 - chance("colour")) if lost else 0)
    assert other == 0
    assert truth.high_heads == ({"colours": 2} if lost else {"colours": 1, "styles": 1})


@pytest.mark.parametrize(("consistent", "high"), [(5, 1), (4, 0), (3, 0)])
def test_only_heads_whose_first_five_texts_all_name_their_label_are_high(
    consistent: int, high: int, tmp_path: Path
) -> None:
    truth = check_ground_truth(
        hand_store(tmp_path / "s", {(0, 0): "size"}, {(0, 0): "sizes"}, consistent=consistent), save=True
    )
    assert truth.high_heads == {"sizes": high}
    assert [each.heads for each in truth.neighbours] == [((0, 0),)]


def test_a_wrong_label_shows_in_neighbours_and_ablation(tmp_path: Path) -> None:
    truth = check_ground_truth(hand_store(tmp_path / "s", {(0, 0): "colour"}, {(0, 0): "shapes"}), save=True)
    (check,), (ablation,) = truth.neighbours, truth.ablations
    assert check.concept == ablation.concept == "shapes"
    # Ten neighbours of a query are not independent, so each query counts once.
    assert abs(check.through_heads - check.chance) < sampling_error(check.chance, check.queries)
    assert ablation.own_and_other_loss(truth.zero_shot) == (0, pytest.approx(1 - chance("colour")))


def test_equal_evidence_in_every_patch_scores_the_area_of_the_objects(tmp_path: Path) -> None:
    maps = check_ground_truth(hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS), save=True).maps
    repeated = [each for each in SCENES if each.repeated]
    area = (render(repeated, masks=True)[1] > 0).mean()
    assert maps.images == len(repeated)
    assert maps.area == pytest.approx(area)
    assert maps.mass_inside == pytest.approx(area)
    assert maps.average_precision == pytest.approx(area)


def test_maps_score_as_the_objects_share_of_each_patch_if_evidence_is_proportional_to_it(tmp_path: Path) -> None:
    masks = render(SCENES, masks=True)[1] > 0
    shares = masks.reshape(len(SCENES), PATCHES, 16, PATCHES, 16).mean(axis=(2, 4)).astype(np.float16)
    where = np.concatenate([np.zeros((len(SCENES), 1)), shares.reshape(len(SCENES), -1)], axis=1)
    store = hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS, where=where.astype(np.float32))
    maps = check_ground_truth(store, save=True).maps
    wanted = np.mean(
        [
            map_scores(resized(share.astype(np.float32), (64, 64)), mask)
            for share, mask, each in zip(shares, masks, SCENES, strict=True)
            if each.repeated
        ],
        axis=0,
    )
    assert (maps.mass_inside, maps.area, maps.average_precision) == pytest.approx(tuple(wanted), rel=1e-4)
    assert maps.mass_inside > 2 * maps.area


def test_precision_counts_the_nearest_others_that_share_the_value() -> None:
    # Of four images two are a, two are b. The first two find each other; the last two find the first.
    same = same_value(np.array(["a", "a", "b", "b"]))
    scores = np.array([[9, 5, 1, 0], [5, 9, 1, 0], [4, 1, 9, 2], [4, 1, 2, 9]], np.float32)
    assert precision_at(scores, same, nearest=1) == 2 / 4
    assert precision_at(scores, same, nearest=2) == (1 + 1 + 1 + 1) / 8
    # Three or ten neighbours are all three other images, of which one has the same value.
    assert precision_at(scores, same, nearest=3) == precision_at(scores, same) == pytest.approx(1 / 3)
    assert chance_of_same(same) == pytest.approx(1 / 3)


def test_scores_of_fewer_than_two_images_are_not_defined() -> None:
    same = same_value(np.array(["a"]))
    assert np.isnan(precision_at(np.zeros((1, 1), np.float32), same))
    assert np.isnan(chance_of_same(same))


def test_random_scores_have_a_precision_at_chance() -> None:
    random = np.random.default_rng(0)
    same = same_value(random.integers(0, 7, 257))
    found = precision_at(random.standard_normal((257, 257)).astype(np.float32), same)
    assert abs(found - chance_of_same(same)) < sampling_error(1 / 7, 2570)


@pytest.mark.parametrize(
    ("evidence", "inside", "precision"),
    [
        # One of four pixels is inside. All evidence there; a third there; the same everywhere; none there.
        ([[4, 0], [0, 0]], 1, 1),
        ([[1, 2], [0, 0]], 1 / 3, 1 / 2),
        ([[1, 1], [1, 1]], 1 / 4, 1 / 4),
        ([[0, 1], [1, 1]], 0, 1 / 4),
        # Negative evidence has no mass, but a rank.
        ([[2, -5], [-1, 2]], 1 / 2, 1 / 2),
        ([[-1, -2], [-2, -2]], 0, 1),
    ],
)
def test_a_map_is_scored_by_its_positive_mass_and_by_its_ranking(
    evidence: list[list[int]], inside: float, precision: float
) -> None:
    mask = np.array([[True, False], [False, False]])
    found = map_scores(np.array(evidence, np.float32), mask)
    assert found == (pytest.approx(inside), 1 / 4, pytest.approx(precision))


def test_the_kind_of_a_background_does_not_count_as_another_concepts_factor() -> None:
    zero_shot = {factor: Accuracy(0.9, 0.1, 10) for factor in ("colour", "background", "background_colour")}
    left = {"colour": 0.8, "background": 0.2, "background_colour": 0.4}
    found = Ablation("backgrounds", ((0, 0),), left).own_and_other_loss(zero_shot)
    assert found == (pytest.approx(0.5), pytest.approx(0.1))
    found = Ablation("colours", ((0, 0),), left).own_and_other_loss(zero_shot)
    assert found == (pytest.approx(0.1), pytest.approx(0.7))


def test_controls_are_measured_by_the_same_code_stored_and_read_back(tmp_path: Path) -> None:
    store = hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS)
    other = hand_store(tmp_path / "other", {(0, 1): "size"}, {(0, 1): "sizes"})
    before = check_ground_truth(other, save=True)
    truth = check_ground_truth(store, controls={"store": other, "measured before": before}, save=True)
    assert truth.controls == {"store": before, "measured before": before}
    assert (truth.about, before.about) == ("model hand, weights of its own",) * 2
    assert read_ground_truth(store, "world") == truth
    assert read_ground_truth(hand_store(tmp_path / "new", {}, {}), "world") is None


def test_high_heads_stand_beside_their_expected_number_by_chance_which_is_not_stored(tmp_path: Path) -> None:
    store = hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS)
    truth = check_ground_truth(store, save=True)
    # Two heads have five of the pool's 40 texts; each of its eight concepts has five.
    expected = dict.fromkeys(FACTOR_OF, pytest.approx(2 / math.comb(40, 5)))
    assert truth.high_by_chance == expected
    read = read_ground_truth(store, "world")
    assert read is not None
    assert read.high_by_chance == expected
    assert "high_by_chance" not in results.load_settings(store, "truth", "world")["answers"]
    table = truth_tables(read)[1]
    assert table.names == ("concept", "heads", "chance")
    assert [[cell.words for cell in row] for row in table.rows] == [
        ["colours", "1", "3e-06"],
        ["shapes", "1", "3e-06"],
        ["all", "2", "2.4e-05"],
    ]
    shutil.rmtree(store.path / "textspan")
    unknown = read_ground_truth(hs.open(store.path), "world")
    assert unknown == truth
    assert unknown.high_by_chance == {}
    assert truth_tables(unknown)[1].names == ("concept", "heads")


def test_a_control_of_other_scenes_is_refused(tmp_path: Path) -> None:
    store = hand_store(tmp_path / "s", COLOUR_AND_SHAPE, RIGHT_LABELS)
    fewer = hand_store(tmp_path / "fewer", COLOUR_AND_SHAPE, RIGHT_LABELS, scenes=SCENES[:150])
    with pytest.raises(SettingsError, match="the control 'fewer' has other scenes; give a control of the same shards"):
        check_ground_truth(store, controls={"fewer": fewer}, save=True)
    assert read_ground_truth(store, "world") is None


def test_a_result_of_an_earlier_version_is_read_without_controls_and_a_contradictory_one_is_refused() -> None:
    each = Accuracy(0.5, 0.1, 20)
    truth = GroundTruth("r", {"colour": each, "size": each}, {"colours": 1}, (), MapCheck(1, 0.5, 0.2, 0.4), ())
    stored = asdict(truth)
    earlier = {key: value for key, value in stored.items() if key not in ("about", "controls")}
    assert ground_truth_from_json({**earlier, "high_heads_at_random": {"colours": 0}}) == truth
    with pytest.raises(ValueError, match="a control has other factors"):
        ground_truth_from_json({**stored, "controls": {"x": asdict(replace(truth, zero_shot={"colour": each}))}})
    without_factor = {"concept": "shapes", "heads": [], "accuracies": {"colour": 0.5, "size": 0.5}}
    with pytest.raises(ValueError, match="the factor of an ablated concept has no accuracy"):
        ground_truth_from_json({**stored, "ablations": [without_factor]})


def test_images_that_are_not_scenes_are_refused_by_name(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    keep(store, LABELLED)
    label_heads(store, save=True)
    concept_consistency(store, save=True)
    with pytest.raises(SettingsError, match="00000 is not a scene of the image world; make shards with"):
        check_ground_truth(store, save=True)
