"""A planted spurious cue: colours that go with shapes, and the worst group without the heads that carry colours."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError
from headspan.prune.choice.spurious_heads import PUBLISHED_HEADS, spurious_heads
from headspan.prune.studies.concept_specific import concepts_of
from headspan.prune.studies.spurious import SpuriousStudy, spurious_study
from headspan.prune.total.total_effect import total_effect
from headspan.store.head_space import stored_heads
from headspan.tasks.classification import Classification
from headspan.tasks.skew import Skew
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task
from headspan.world.planted import planted_scenes, write_planted_shards
from tests.engine.test_reading_buckets import printed_in_bucket
from tests.tolerances import FLOAT32_SUM

# Most circles are red and most squares are blue; and more objects are red than blue.
COUNTS = {("red", "circle"): 160, ("blue", "square"): 100, ("red", "square"): 40, ("blue", "circle"): 40}
# Classes are named after the most common colour too, as waterbirds are after water.
TASK = Task("planted", "worst_group", classes=("red circle", "blue square"), templates=("a {c}",), groups=("colour",))
CUE, CORE = ["red shape", "blue shape"], ["circle", "square"]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    folder = tmp_path_factory.mktemp("planted")
    shards = write_planted_shards(folder / "shards", COUNTS, seed=5)
    hs.precompute(
        shards=[shards], out=folder / "run.zarr", model="reference", layers="all", emit=("heads", "mlps"), device="cpu"
    )
    return hs.open(folder / "run.zarr")


@pytest.fixture(scope="module")
def study(planted: hs.Store) -> SpuriousStudy:
    chosen = {"by hand": [(4, 3), (5, 4)]}
    return spurious_study(
        planted, TASK, CUE, CORE, chosen=chosen, rests=("nothing", "mlps", "earlier and mlps"), draws=5
    )


def test_planted_scenes_have_the_pairs_that_were_asked_for(planted: hs.Store) -> None:
    known = [json.loads(text) for text in planted.samples()["metadata"].to_pylist()]
    assert Counter((each["colour"], each["shape"]) for each in known) == COUNTS
    labels = planted.samples()["label"].to_pylist()
    assert labels == [["circle", "square"].index(each["shape"]) for each in known]
    for each in known[:20]:
        scene = hs.world.scene(each["seed"], each["split"], each["index"])
        assert scene.repeated
        assert (scene.things[0].colour, scene.things[0].shape) == (each["colour"], each["shape"])
    indices = [each["index"] for each in known]
    assert indices == sorted(set(indices))


@pytest.mark.parametrize(
    ("counts", "split", "message"),
    [
        ({("mauve", "circle"): 1}, "train", "mauve circle: give one of red, orange"),
        ({("red", "blob"): 1}, "train", "red blob: give one of red, orange"),
        (
            {("blue", "circle"): 1},
            "held_out",
            "blue circle: split held_out never draws it; choose another pair or split",
        ),
        ({("red", "circle"): 1}, "test", "split 'test' does not exist"),
    ],
)
def test_pairs_that_cannot_be_drawn_are_refused(counts: dict[tuple[str, str], int], split: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        planted_scenes(counts, 5, split)


def test_a_heads_score_is_its_variance_along_the_words_from_dense_contributions(planted: hs.Store) -> None:
    images = np.arange(3, 260, 2)
    found = spurious_heads(planted, CUE, CORE, images=images)
    vectors = hs.text_vectors(planted, [*CUE, *CORE]).astype(np.float64)
    for place, head in enumerate(found.heads):
        products = planted.head(*head)[images].astype(np.float64) @ vectors.T
        variances = products.var(axis=0)
        # A variance is the difference of two means of squares, each with the rounding of float32 contributions.
        tolerance = FLOAT32_SUM * float((products**2).mean()) + 1e-9
        assert found.spurious[place] == pytest.approx(variances[:2].mean(), abs=tolerance)
        assert found.core[place] == pytest.approx(variances[2:].mean(), abs=tolerance)
    assert sorted(found.heads) == stored_heads(planted)
    assert (np.diff(found.score) <= 0).all()
    assert found.candidates(2) == found.heads[:2]
    assert len(found.candidates(1000)) == (found.score > 0).sum()


def test_ablating_the_chosen_heads_raises_the_worst_group_on_images_that_did_not_choose(study: SpuriousStudy) -> None:
    for rest in ("nothing", "mlps", "earlier and mlps"):
        automatic = study.variant("automatic", rest)
        assert automatic.heads
        assert automatic.change.low > 0, rest
        # As many random heads of the same layers do not.
        assert study.variant("random", rest).change.low < 0, rest
    assert study.variant("whole").change.value == 0
    assert study.variant("by hand").change.low > 0
    assert study.variant("automatic").figures["worst_group"] > 0.9


def test_the_figures_are_those_of_dense_contributions_over_the_test_images(
    study: SpuriousStudy, planted: hs.Store
) -> None:
    tests = np.setdiff1d(
        np.arange(planted.images), np.sort(np.random.default_rng(0).permutation(planted.images)[: planted.images // 2])
    )
    assert (study.test_images, study.held_out_images) == (len(tests), planted.images // 2)
    known = planted.samples()
    truths = known["label"].to_numpy()
    colours = np.array([json.loads(text)["colour"] for text in known["metadata"].to_pylist()])
    vectors = hs.text_vectors(planted, ["a red circle", "a blue square"])
    for variant in study.variants:
        if variant.name == "random":
            continue
        embeddings = planted.embedding / planted.norm[:, 2:]
        heads = [
            *variant.heads,
            *((layer, head) for layer, head in stored_heads(planted) if "earlier" in variant.rest and layer < 2),
        ]
        removed = [planted.head(*head) for head in dict.fromkeys(heads)]
        if "mlps" in variant.rest:
            removed.append(planted.mlps().sum(axis=1))
        for each in removed:
            embeddings = embeddings - (each - each.mean(axis=0, dtype=np.float64))
        named = (embeddings @ vectors.T).argmax(axis=1)
        groups = {
            (truth, colour): [
                int(named[image] == truth) for image in tests if (truths[image], colours[image]) == (truth, colour)
            ]
            for truth in (0, 1)
            for colour in ("red", "blue")
        }
        for (truth, colour), right in groups.items():
            name = f"{TASK.classes[truth]}, {colour}"
            # One image may lie so near to the border that the order of a sum decides.
            assert variant.figures[name] == pytest.approx(np.mean(right), abs=1.01 / len(right)), (variant.name, name)


def test_the_number_of_heads_is_the_best_one_on_held_out_images(study: SpuriousStudy) -> None:
    for rest, curve in study.held_out.items():
        assert len(study.variant("automatic", rest).heads) == curve.index(max(curve))
        assert study.variant("automatic", rest).heads == study.ranking.heads[: curve.index(max(curve))]


def test_a_study_prints_itself_and_is_a_table(study: SpuriousStudy) -> None:
    assert repr(study).startswith("SpuriousStudy(planted: worst group ")
    columns = study._columns()
    assert {"heads", "count", "also_ablated", "worst_group", "red circle, blue", "change_low"} <= set(columns)
    assert len({len(values) for values in columns.values()}) == 1
    with pytest.raises(SettingsError, match="no variant 'label' with 'nothing' ablated too; names: whole, by hand"):
        study.variant("label")


def test_held_out_images_can_be_named_by_the_metadata_and_groups_missing_there_are_said(planted: hs.Store) -> None:
    found = spurious_study(planted, TASK, CUE, CORE, held_out="shape=circle", rests=("nothing",), draws=0, most=2)
    assert found.held_out_images == 200
    assert found.remarks == (
        "group blue square, blue has no held-out image, so it is left out there",
        "group blue square, red has no held-out image, so it is left out there",
        "group red circle, blue has no test image, so it is left out there",
        "group red circle, red has no test image, so it is left out there",
    )
    assert [each.name for each in found.variants] == ["whole", "automatic"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spurious": []}, "there are no spurious words; give a list of at least one, such as land or water"),
        ({"core": [" "]}, "there are no core words"),
        ({"core": "circle"}, "there are no core words"),
        ({"held_out": []}, "of 340 images, none is held out to choose heads, but choosing and testing both need some"),
        ({"held_out": range(340)}, "of 340 images, all are held out"),
        ({"held_out": "val"}, "held-out images 'val': write a key of the metadata and its value, as in split=val"),
        ({"held_out": "split=val"}, "no image has split=val in its metadata; values of split: train"),
        ({"held_out": "part=val"}, "values of part: no image has this key"),
        ({"chosen": {"whole": []}}, "heads named 'whole': the study has variants of that name; choose another one"),
        ({"chosen": {"mine": [(9, 0)]}}, "layer 9"),
        ({"rests": ("all",)}, "'all' cannot be ablated; choose one of nothing, earlier, mlps, earlier and mlps"),
    ],
)
def test_questions_without_an_answer_are_refused(changed: dict[str, object], message: str, planted: hs.Store) -> None:
    asked: dict[str, object] = {"spurious": CUE, "core": CORE, "draws": 1, "samples": 10, **changed}
    with pytest.raises(SettingsError, match=message):
        spurious_study(planted, TASK, **asked)  # type: ignore[arg-type]


def test_max_skew_of_a_planted_imbalance_equals_its_value_by_hand(planted: hs.Store) -> None:
    prompts = ("red shape", "blue shape", "square", "picture")
    skew = Skew.of(
        Task("planted", "skew", classes=prompts, templates=("a {p}", "one {p}"), groups=("colour",)), planted
    )
    outcomes = skew.outcomes(planted.embedding)
    colours = [json.loads(text)["colour"] for text in planted.samples()["metadata"].to_pylist()]
    data = {colour: colours.count(colour) / len(colours) for colour in ("red", "blue")}
    assert data == {"red": 200 / 340, "blue": 140 / 340}
    by_hand = []
    for prompt in prompts:
        phrases = hs.text_vectors(planted, [f"a {prompt}", f"one {prompt}"])
        vector = phrases[0] + phrases[1]
        ranking = sorted(
            range(340), key=lambda image: -float(planted.embedding[image] @ vector) / float(planted.norm[image, 2])
        )
        top = Counter(colours[image] for image in ranking[:10])
        by_hand.append(max(math.log(count / 10 / data[colour]) for colour, count in top.items()))
    # The ten images nearest to a colour all have it.
    np.testing.assert_allclose(by_hand[:2], np.log([340 / 200, 340 / 140]))
    assert skew.figures(outcomes)["max_skew_sum_colour"] == pytest.approx(sum(by_hand))
    np.testing.assert_allclose(skew.per_prompt(outcomes)._columns()["max_skew"], by_hand)


CLASSIFIED = """
metric = "accuracy"
classes = ["circle", "square"]
templates = ["a {c}"]
[concepts]
round = ["circle"]
angular = ["square"]
"""


@pytest.fixture
def declared(tmp_path: Path) -> tuple[str, str]:
    """The files of a task of groups, and of a classification."""
    groups, classified = tmp_path / "groups.toml", tmp_path / "classified.toml"
    classes, templates = json.dumps(TASK.classes), json.dumps(TASK.templates)
    groups.write_text(f'metric = "worst_group"\nclasses = {classes}\ntemplates = {templates}\ngroups = ["colour"]\n')
    classified.write_text(CLASSIFIED)
    return str(groups), str(classified)


def test_the_command_spurious_prints_and_exports_the_study(
    planted: hs.Store,
    study: SpuriousStudy,
    declared: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--cue", "red shape, blue shape", "--core", "circle,square"]
    table = tmp_path / "table.csv"
    command = ["spurious", str(planted.path), "--task", declared[0], *words, "--draws", "5", "--csv", str(table)]
    assert main([*command, "--heads", "L4.H3,L5.H4"]) == 0
    printed = capsys.readouterr().out
    automatic = study.variant("automatic")
    worst = f"{100 * automatic.figures['worst_group']:.1f} %"
    line = next(line for line in printed.splitlines() if line.startswith("automatic"))
    assert worst in line
    assert f"chosen: {', '.join(f'L{layer}.H{head}' for layer, head in automatic.heads)}" in printed
    assert "170 test images; 170 held-out images chose the number of heads" in printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["heads"] for row in rows[:4]] == ["whole", "L4.H3,L5.H4", "automatic", "random"]
    assert printed_in_bucket([*command, "--heads", "L4.H3,L5.H4"], planted.path, capsys) == printed
    assert float(rows[2]["worst_group"]) == automatic.figures["worst_group"]


def test_the_command_concepts_prints_and_exports_what_each_concept_loses(
    planted: hs.Store, declared: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    command = ["concepts", str(planted.path), "--task", declared[1], "--draws", "2", "--samples", "50"]
    assert main([*command, "--heads", "round=L4.H2", "--csv", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "above mean, above largest" in printed
    assert printed_in_bucket([*command, "--heads", "round=L4.H2"], planted.path, capsys) == printed
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [(row["pruned"], row["heads"], row["scored"]) for row in rows] == [
        ("round", "L4.H2", "round"),
        ("round", "L4.H2", "angular"),
    ]
    assert float(rows[0]["above_mean"]) == pytest.approx(float(rows[0]["loss"]) - float(rows[1]["loss"]))
    assert rows[1]["above_mean"] == ""
    # The same heads in the live model.
    assert main([*command, "--heads", "round=L4.H2", "--mode", "total", "--device", "cpu", "--json", "-"]) == 0
    live = json.loads(capsys.readouterr().out)
    concepts = concepts_of(Classification.of(read_task(declared[1]), planted))
    left = total_effect(planted, [[(4, 2)]])[0]
    for row in live:
        each = concepts[row["scored"]]
        known = each.truths >= 0
        lost = each.correct(planted.embedding)[known].mean() - each.correct(left)[known].mean()
        assert row["loss"] == pytest.approx(lost)


@pytest.mark.parametrize(
    ("command", "task", "flags", "message"),
    [
        ("spurious", 1, ["--cue", "a", "--core", "b"], "has metric accuracy; spurious needs one of metric worst_group"),
        ("spurious", 0, ["--cue", ",", "--core", "b"], "there are no spurious words"),
        ("spurious", 0, ["--cue", "a", "--core", "b", "--samples", "0"], "--samples 0 is too small; give at least 1"),
        ("spurious", 0, ["--cue", "a", "--core", "b", "--held-out", "x=1"], "no image has x=1 in its metadata"),
        ("concepts", 0, [], "has metric worst_group; concepts needs one of metric accuracy"),
        ("concepts", 1, [], "no concept has heads ("),
        (
            "concepts",
            1,
            ["--heads", "blob=L4.H2"],
            "--heads blob=L4.H2: write a concept of the task (round, angular) before =",
        ),
        ("concepts", 1, ["--heads", "L4.H2"], "write a concept of the task"),
        ("concepts", 1, ["--heads", "round=L9.H2"], "L9.H2: is not a head of the store"),
        ("concepts", 1, ["--shards", "x.tar"], "--shards is for the total effect; give --mode total too"),
        ("concepts", 1, ["--draws", "-1"], "--draws -1 is too small; give at least 0"),
    ],
)
def test_commands_refuse_what_has_no_answer_in_one_sentence(
    command: str,
    task: int,
    flags: list[str],
    message: str,
    planted: hs.Store,
    declared: tuple[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([command, str(planted.path), "--task", declared[task], *flags]) == 2
    printed = capsys.readouterr().err.splitlines()
    assert message in printed[-1]


def test_published_heads_are_of_the_last_four_layers() -> None:
    for name, layers in (("ViT-B-16", 12), ("ViT-L-14", 24), ("ViT-H-14", 32)):
        heads = PUBLISHED_HEADS[name]
        assert len(set(heads)) == len(heads)
        assert {layer for layer, _ in heads} <= set(range(layers - 4, layers))
        assert {"ViT-B-16": 7, "ViT-L-14": 15, "ViT-H-14": 9}[name] == len(heads)


def test_a_study_leaves_a_read_only_store_as_it_was(planted: hs.Store) -> None:
    def files() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in planted.path.rglob("*"))

    before = files()
    spurious_study(hs.open(planted.path), TASK, CUE, CORE, rests=("nothing",), draws=1, samples=10)
    assert files() == before
