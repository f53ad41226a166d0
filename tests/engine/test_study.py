"""Studies of which heads matter, on stores of scenes in which single heads write single factors.

Without the head that writes a factor, all images have one embedding along it, so the model names one value for all.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.concepts.ccs import concept_consistency
from headspan.concepts.labels import label_heads
from headspan.errors import NotSavedError, SettingsError, StoreError
from headspan.prune.studies.effects import GroupEffect, TaskEffects
from headspan.prune.studies.statistics import Interval, paired_bootstrap, rank_correlation_of_heads
from headspan.prune.studies.study import read_study, study
from headspan.prune.studies.study_plan import HeadSet
from headspan.store.write.removal import remove_runs
from headspan.tasks.attribute_task import attribute_task
from headspan.tasks.classification import Classification
from headspan.tasks.task import Task
from headspan.tasks.truths import class_truths, image_groups, value_at
from headspan.tasks.zero_shot import Classes
from headspan.world import prompts, value_of
from tests.conftest import relative_files
from tests.engine.hand_made_scenes import HEADS, LAYERS, axis, hand_store
from tests.engine.hand_made_scenes import SCENES as EVERY_SCENE
from tests.engine.test_kept_runs import read_only
from tests.engine.test_reading_buckets import printed_in_bucket
from tests.s3_server import serving

STYLE, BACKGROUND = (1, 1), (0, 2)
# In these scenes one style and one background is the most common, without a tie.
SCENES = EVERY_SCENE[:147]
VALUES = {factor: [str(value_of(each, factor)) for each in SCENES] for factor in ("style", "background")}
WRITES = {STYLE: "style", BACKGROUND: "background"}
LABELS = {STYLE: "styles", (0, 0): "colours"}
EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def task(factor: str, **changed: object) -> Task:
    """The zero-shot classification of a factor, whose value the metadata has under its name."""
    settings = {"class_key": factor}
    classes = tuple(prompts(factor))
    return replace(Task(factor, "accuracy", classes=classes, templates=("{c}",), settings=settings), **changed)  # type: ignore[arg-type]


TASKS = [task("style"), task("background")]


def axes(
    store: hs.Store, sets: Mapping[str, Mapping[str, Sequence[str]]], *_: object, **__: object
) -> dict[str, Classes]:
    """Takes the place of `embed_classes`: the vector of a value is the axis on which its factor's head writes it."""
    heads = {factor: head for head, factor in WRITES.items()}
    return {
        name: Classes(tuple(ways), np.stack([axis(heads[name.split(" ")[0]], number) for number in range(len(ways))]))
        for name, ways in sets.items()
    }


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.tasks.classification.embed_classes", axes)


@pytest.fixture
def store(tmp_path: Path) -> hs.Store:
    """A store with two high heads, one of which writes styles; all other heads have a CCS of 0."""
    return hand_store(tmp_path / "s.zarr", WRITES, LABELS, SCENES)


def most_common(factor: str) -> float:
    return Counter(VALUES[factor]).most_common(1)[0][1] / len(SCENES)


def accuracy_without(factor: str, heads: Sequence[tuple[int, int]]) -> float:
    """What is left by construction: everything, or the share of the value that is named for all images."""
    (own,) = (head for head, written in WRITES.items() if written == factor)
    if own not in heads:
        return 1.0
    # At its mean, the head writes the shares of the values to their axes, so the most common value is named.
    return most_common(factor)


def test_groups_lose_what_their_heads_write(store: hs.Store) -> None:
    found = study(store, TASKS, ["high", "low", "random"])
    assert [each.name for each in found.groups] == ["high", "low"]
    assert found.groups[0].heads == ((0, 0), STYLE)
    assert set(found.groups[1].heads) == {*EVERY} - {(0, 0), STYLE}
    for each in found.tasks:
        assert each.whole["accuracy"] == 1
        assert each.items == each.images == len(SCENES)
        for heads, value in zip(found.sets, each.values, strict=True):
            assert value == pytest.approx(accuracy_without(each.name, heads.heads))
    style = found.task("style")
    assert (style.lost or ())[0] == round(len(SCENES) * (1 - most_common("style")))
    assert (style.gained or ())[0] == 0
    assert style.groups["low"].change == Interval(0.0, 0.0, 0.0)
    assert found.task("background").groups["high"].change == Interval(0.0, 0.0, 0.0)


def test_random_heads_are_all_sets_of_the_same_layers_if_there_are_few(store: hs.Store) -> None:
    found = study(store, TASKS, ["high", "random"])
    drawn = {each.heads for each in found.sets if each.kind == "random"}
    assert drawn == {((0, first), (1, second)) for first, second in product((1, 2), (0, 2))}
    assert "random heads for high: only 4 different sets of heads can be drawn" in found.remarks
    # No set of random heads costs any style; two of four cost backgrounds, which the group does not.
    assert found.task("style").random(found.sets, "random", "high").p == 1 / 5  # type: ignore[union-attr]
    background = found.task("background").random(found.sets, "random", "high")
    assert background is not None
    assert background.p == 1
    assert background.mean == pytest.approx((2 + 2 * most_common("background")) / 4)


def test_the_interval_is_that_of_the_paired_bootstrap(store: hs.Store) -> None:
    found = study(store, TASKS[:1], ["high"], samples=500, seed=7)
    evaluation = Classification.of(TASKS[0], store)
    whole, without = (evaluation.outcomes(hs.prune.mean_ablated(store, heads)) for heads in ([], found.groups[0].heads))
    (wanted,) = paired_bootstrap(evaluation, whole, [without], 500, 7)
    assert found.tasks[0].groups["high"].change == wanted
    assert wanted.low < wanted.value < wanted.high < 0


def test_single_heads_are_beside_their_scores_and_correlated(store: hs.Store) -> None:
    found = study(store, TASKS, ["single"])
    assert found.labels == ("colours", None, None, None, "styles", None)
    assert found.ccs == (5, 0, 0, 0, 5, 0)
    frame = found.single().to_frame()
    of_style = frame[frame.task == "style"]
    assert of_style.value.tolist() == pytest.approx([accuracy_without("style", [head]) for head in EVERY])
    assert of_style.change.tolist() == pytest.approx([value - 1 for value in of_style.value])
    losses = np.array([1 - accuracy_without("style", [head]) for head in EVERY])
    layers = np.array([layer for layer, _ in EVERY])
    wanted = rank_correlation_of_heads(np.array(found.ccs, float), losses, layers)
    assert found.task("style").correlations["loss"] == wanted
    # The same heads by the general way, which other metrics take.
    margins = found.task("style").margin_losses
    assert margins is not None
    assert np.argmax(margins) == EVERY.index(STYLE)


def test_equal_numbers_are_drawn_of_both_groups(store: hs.Store) -> None:
    found = study(store, TASKS[:1], ["high", "low", "equal"])
    sizes = {(each.kind, each.of): len(each.heads) for each in found.sets if each.kind.startswith("equal")}
    assert set(sizes.values()) == {2}
    assert set(sizes) == {
        (kind, of) for kind in ("equal", "equal in layer") for of in ("high beside low", "low beside high")
    }


def test_heads_are_removed_one_after_the_other(store: hs.Store) -> None:
    found = study(store, TASKS, ["single"], greedy=6)
    frame = found.greedy().to_frame()
    for factor, head in (("style", STYLE), ("background", BACKGROUND)):
        own = frame[frame.task == factor]
        assert own.value.tolist() == pytest.approx([1] * 5 + [most_common(factor)])
        assert (own.layer.iloc[-1], own["head"].iloc[-1]) == head


def test_an_empty_group_is_said_and_the_study_goes_on(tmp_path: Path) -> None:
    store = hand_store(tmp_path / "s.zarr", WRITES, LABELS, SCENES, consistent=4)
    found = study(store, TASKS[:1], ["high", "low", "random"])
    assert "high: no head has CCS 5, so the study goes on without it" in found.remarks
    assert [each.of for each in found.sets if each.kind == "group"] == ["low"]
    with pytest.raises(
        SettingsError, match=r"there are no heads to prune.*no head has CCS 3; high:styles: no head with"
    ):
        study(store, TASKS[:1], ["moderate", "high:styles"])


def test_a_saved_study_reads_back_equal_and_nothing_else_is_written(
    store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = relative_files(store.path)
    found = study(store, TASKS, ["high", "label:colours", "random", "single"], greedy=2)
    assert relative_files(store.path) == before
    saved = study(store, TASKS, ["high", "label:colours", "random", "single"], greedy=2, run="mine")
    assert saved == found
    assert read_study(hs.open(store.path)) == read_study(store, "mine") == saved
    assert read_study(store).lineage == saved.lineage
    assert study(store, TASKS, ["low"]) != saved
    changed = {name for name in relative_files(store.path) if name not in before}
    assert all(name.startswith(("prune/", "records/results/prune/")) for name in changed)
    (listed,) = (each for each in hs.runs(store) if each.kind == "prune")
    assert (listed.name, listed.damaged, listed.older) == ("mine", False, None)
    assert listed.settings == "direct effect of high, label:colours on style, background"
    with monkeypatch.context() as patched:
        # Nothing is measured before.
        patched.setattr("headspan.prune.studies.study.score_tasks", None)
        with pytest.raises(StoreError, match=r"prune run 'mine' was made differently \(other groups, other sets\)"):
            study(store, TASKS, ["low"], run="mine")
    assert study(store, TASKS, ["low"], run="mine", overwrite=True) == read_study(store)
    remove_runs(store, "prune/mine")
    with pytest.raises(StoreError, match="has no prune run; run headspan prune"):
        read_study(store)


def test_a_study_of_scores_that_were_replaced_is_of_an_older_run(store: hs.Store) -> None:
    saved = study(store, TASKS, ["high"], run="mine")
    assert saved.lineage is not None
    assert list(saved.lineage.made_from) == ["ccs/world"]
    done = remove_runs(store, "ccs/world")
    assert done.marked == ("prune/mine",)
    assert read_study(store).older == "ccs/world"
    concept_consistency(store, label_heads(store), save=True)
    assert read_study(store).older is None


def test_a_store_that_may_only_be_read_gives_the_study(
    store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = _declaration(tmp_path / "style.toml", "style")
    with read_only(store.path):
        found = study(store, TASKS[:1], ["high"])
        with pytest.raises(NotSavedError, match="Permission denied") as caught:
            study(store, TASKS[:1], ["high"], run="mine")
        assert caught.value.result == found
        assert main(["prune", str(store.path), "--task", str(declared), "--heads", "high", "--run", "mine"]) == 0
    printed = capsys.readouterr()
    assert "style" in printed.out
    assert "headspan: the result was not saved: " in printed.err
    assert "saved as" not in printed.err


def test_a_task_may_be_on_another_store_of_the_same_model(store: hs.Store, tmp_path: Path) -> None:
    fewer = hand_store(tmp_path / "b.zarr", WRITES, {}, SCENES[:40])
    found = study(store, [TASKS[0], (TASKS[0], fewer), (TASKS[1], str(fewer.path))], ["high"])
    assert [each.name for each in found.tasks] == ["style on s.zarr", "style on b.zarr", "background"]
    assert [each.images for each in found.tasks] == [len(SCENES), 40, 40]
    # The groups are those of the first store, whose scores the other one does not have.
    own = Counter(VALUES["style"][:40]).most_common(1)[0][1] / 40
    assert found.task("style on b.zarr").values[0] == pytest.approx(own)


def test_a_store_of_another_model_is_refused(store: hs.Store, tmp_path: Path) -> None:
    other = Path(shutil.copytree(store.path, tmp_path / "other.zarr"))
    about = json.loads((other / "zarr.json").read_text())
    about["attributes"]["headspan"]["preprocess"] = {"size": [32, 32]}
    (other / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(SettingsError, match=r"other.zarr: is a store of another model than .*s.zarr \(preprocessing"):
        study(store, [(TASKS[0], other)], ["high"])


@pytest.mark.parametrize(
    ("tasks", "groups", "settings", "error"),
    [
        ([], ["high"], {}, "a study needs at least one task"),
        (TASKS[:1] * 2, ["high"], {}, "task style: is given twice"),
        (TASKS[:1], ["random"], {}, "name a group of heads to prune, such as high"),
        (TASKS[:1], ["L7.H0"], {}, r"L7.H0: is not a head of the store, which has layers 0-1 with heads 0 to 2"),
        (TASKS[:1], ["high"], {"draws": -1}, "draws is negative"),
        (TASKS[:1], ["high"], {"samples": 0}, "intervals need at least 1 bootstrap sample"),
        (TASKS[:1], ["high"], {"greedy": -1}, "greedy -1: give how many heads"),
        (TASKS[:1], ["label:animals"], {}, "no head has the label 'animals'"),
        (TASKS[:1], ["high"], {"run": "../up"}, "use letters, digits"),
        ([task("style", settings={"class_key": "weather"})], ["high"], {}, "task style needs classes of images"),
    ],
)
def test_what_a_study_cannot_do_is_said(
    tasks: list[Task], groups: list[str], settings: dict[str, object], error: str, store: hs.Store
) -> None:
    with pytest.raises(SettingsError, match=error):
        study(store, tasks, groups, **settings)  # type: ignore[arg-type]


def test_where_less_is_better_more_is_the_loss() -> None:
    sets = (HeadSet("group", "g", ((0, 0),)), *(HeadSet("random", "g", ((0, n),)) for n in range(1, 5)))
    values = (3.0, 2.0, 3.5, 1.0, 0.5)
    effects = TaskEffects(
        *("t", "", "skew", "max_skew_sum", False, "s", 9, 9),
        {"max_skew_sum": 1.0},
        values,
        None,
        None,
        {"g": GroupEffect({"max_skew_sum": 3.0}, Interval(2.0, 1.0, 3.0))},
    )
    found = effects.random(sets, "random", "g")
    assert found is not None
    # One of four draws raises the skew as much.
    assert (found.draws, found.mean, found.p) == (4, 1.75, 2 / 5)
    assert not effects.is_share
    assert effects.mcnemar(0) is None


def test_published_figures_of_the_model_stand_beside(store: hs.Store) -> None:
    known = {"hand": {"whole": 91.5, "high": 40.0, "random": 80.0}, "another": {"whole": 1.0}}
    own = task("style", published=known, published_note="Measured on other images.")
    frame = study(store, [own, TASKS[1]], ["high", "random", "unmatched"]).to_frame()
    found = {(row.task, row.kind, row.of): row.published for row in frame.itertuples()}
    assert found["style", "whole", ""] == 91.5
    assert found["style", "group", "high"] == 40
    assert found["style", "unmatched", "high"] == 80
    assert np.isnan(found["style", "random", "high"])
    assert np.isnan(found["background", "whole", ""])


def test_the_table_has_a_row_for_each_group_and_for_its_random_heads(store: hs.Store, tmp_path: Path) -> None:
    found = study(store, TASKS, ["high", "low", "random"])
    frame = found.to_frame()
    # The low heads leave no heads outside them but the two high ones.
    kinds = frame[frame.task == "style"].kind.tolist()
    assert kinds == ["whole", "group", "random", "group"]
    assert any(each.startswith("random heads for low: only 2 heads outside for 4") for each in found.remarks)
    assert {"mean_per_class", "chance"} <= set(frame.columns)
    for name in ("csv", "json", "parquet"):
        getattr(found, f"to_{name}")(tmp_path / f"t.{name}")
        getattr(found.every_set(), f"to_{name}")(tmp_path / f"s.{name}")
    rows = json.loads((tmp_path / "t.json").read_text())
    assert [row["change"] for row in rows] == [None if np.isnan(each) else each for each in frame.change]
    assert found.every_set().to_frame()["heads"].iloc[0] == "L0.H0,L1.H1"


def test_the_total_effect_of_a_task_that_is_scored_from_maps_is_refused(store: hs.Store) -> None:
    maps = Task("maps", "segmentation", classes=("a",), templates=("{c}",))

    class Maps:
        task = maps

        def outcomes_without(self, heads: object) -> None:
            raise AssertionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headspan.prune.studies.study_tasks.evaluation_of", lambda *_, **__: Maps())
        with pytest.raises(
            SettingsError, match="task maps: metric segmentation is scored from the stored contributions"
        ):
            study(store, [maps], ["high"], "total")


def _declaration(path: Path, factor: str) -> Path:
    names = ", ".join(f'"{name}"' for name in prompts(factor))
    path.write_text(
        f'name = "{factor}"\nmetric = "accuracy"\nclasses = [{names}]\ntemplates = ["{{c}}"]\n'
        f'[settings]\nclass_key = "{factor}"\n'
    )
    return path


def test_an_attribute_may_lie_deeper_in_the_metadata(store: hs.Store) -> None:
    written = [json.loads(text) for text in store.samples(columns=["metadata"])["metadata"].to_pylist()]
    shapes = [each["objects"][0]["shape"] for each in written]
    deep = attribute_task(store, "objects.shape", by=["objects.0.colour"])
    assert deep.classes == tuple(sorted(set(shapes)))
    assert [deep.classes[number] for number in class_truths(store, deep)] == shapes
    groups = image_groups(store, deep.groups)
    assert [groups.names[number] for number in groups.numbers] == [each["objects"][0]["colour"] for each in written]
    # A key that has a dot itself is no path.
    assert value_at({"a.b": 1, "a": {"b": 2}}, "a.b") == 1
    assert value_at({"a": [{"b": 2}]}, "a.1.b") is None


def test_a_study_in_a_bucket_is_saved_as_on_disk(
    store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", str(_declaration(tmp_path / "style.toml", "style")), "--heads", "high", "--run", "mine"]
    with serving() as server:
        place = server.hold(store.path)
        assert main(["prune", place, *words]) == 0
        assert capsys.readouterr().err.endswith("saved as prune/mine\n")
        assert main(["prune", str(store.path), *words]) == 0
        capsys.readouterr()
        shown = []
        for each in (place, str(store.path)):
            assert main(["prune", each, "--run", "mine", "--json", "-"]) == 0
            shown.append(capsys.readouterr().out.replace(each, "s.zarr"))
        assert shown[0] == shown[1]
        # The name is taken.
        assert main(["prune", place, *words, "--seed", "5"]) == 2
        assert "choose another --run" in capsys.readouterr().err


def test_the_command_prints_groups_beside_chance_and_random(
    store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = _declaration(tmp_path / "style.toml", "style")
    arguments = ["prune", str(store.path), "--task", str(declared)]
    assert main([*arguments, "--heads", "high", "--heads", "moderate", "--heads", "random", "--run", "mine"]) == 0
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    share, lost = most_common("style"), round(len(SCENES) * (1 - most_common("style")))
    assert ["chance", "-", *f"{100 * share:.1f} %".split(), *"-" * 6] in lines
    (high,) = (line for line in lines if line[:2] == ["high", "2"])
    assert high[2:5] == [f"{100 * share:.1f}", "%", f"{100 * (share - 1):.1f}"]
    assert f"{lost}" in high
    assert "note: moderate: no head has CCS 3, so the study goes on without it" in printed.out
    assert f"{len(SCENES)} images of {store.path}" in printed.out
    assert printed.err.endswith("saved as prune/mine\n")
    # The saved study is shown without its task.
    assert main(["prune", str(store.path), "--run", "mine"]) == 0
    assert capsys.readouterr().out == printed.out
    assert printed_in_bucket(["prune", str(store.path), "--run", "mine"], store.path, capsys) == printed.out
    assert main(["prune", str(store.path), "--run", "mine", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["kind"] == "whole"


def test_the_command_prints_single_heads_greedy_removal_and_every_set(
    store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = _declaration(tmp_path / "style.toml", "style")
    arguments = ["prune", str(store.path), "--task", str(declared), "--heads", "single"]
    assert main([*arguments, "--table", "heads", "--csv", str(tmp_path / "heads.csv")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2][:3] == ["L1.H1", "styles", "5"]
    assert len((tmp_path / "heads.csv").read_text().splitlines()) == 1 + len(EVERY)
    assert main([*arguments, "--greedy", "6", "--table", "greedy"]) == 0
    assert "L1.H1" in capsys.readouterr().out.splitlines()[7]
    assert main([*arguments, "--table", "sets"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 2 + len(EVERY)
    assert printed_in_bucket([*arguments, "--table", "sets"], store.path, capsys) == printed


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        ([], "prune needs a task: give --task"),
        (["--run", "mine"], "holds no prune run 'mine'"),
        (["--task", "cifar11"], "'cifar11' is not a task"),
        (["--task", "cifar10="], "write the task before = and a store behind it"),
        (["--task", "cifar10=nowhere.zarr"], "nowhere.zarr: no such folder"),
        (["--task", "cifar10", "--keep", "k"], "--keep is for the total effect; give --mode total too"),
        (["--task", "STYLE", "--heads", "high,low"], "is no group of heads"),
        (["--task", "STYLE", "--heads", "L0.H0,L0.H9"], "L0.H9: is not a head of the store"),
        (["--task", "STYLE", "--table", "heads"], "--table heads: no heads were removed alone"),
        (["--task", "STYLE", "--table", "greedy"], "--table greedy: no heads were removed"),
        (["--task", "STYLE", "--scores", "other"], "holds no ccs run 'other'"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_sentence(
    flags: list[str], error: str, store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared = str(_declaration(tmp_path / "style.toml", "style"))
    assert main(["prune", str(store.path), *(declared if flag == "STYLE" else flag for flag in flags)]) == 2
    printed = capsys.readouterr()
    assert error in printed.err.splitlines()[-1]
    assert not printed.out


def test_a_store_without_scores_goes_on_with_heads_that_are_named(
    toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.arange(toy_store.images) % 3
    monkeypatch.setattr("headspan.tasks.classification.class_truths", lambda *_: numbers)
    vectors = np.random.default_rng(0).standard_normal((3, toy_store.joint)).astype(np.float32)
    monkeypatch.setattr(
        "headspan.tasks.classification.embed_classes", lambda *_, **__: {"toy": Classes(("a", "b", "c"), vectors)}
    )
    toy = Task("toy", "accuracy", classes=("a", "b", "c"), templates=("{c}",))
    found = study(toy_store, [toy], ["L0.H1,L2.H0", "random", "single"], draws=3)
    assert found.scores is None
    assert found.tasks[0].correlations == {}
    assert "single heads: no scores to correlate with; run headspan ccs first" in found.remarks
    for each, value in zip(found.sets, found.tasks[0].values, strict=True):
        named = (hs.prune.mean_ablated(toy_store, each.heads) @ vectors.T).argmax(axis=1)
        assert value == pytest.approx((named == numbers).mean())
    with pytest.raises(StoreError, match="has no ccs run; run headspan ccs"):
        study(toy_store, [toy], ["high"])


def test_the_total_effect_is_that_of_the_live_model_and_continues_where_it_was_kept(
    toy_store: hs.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = np.arange(toy_store.images) % 3
    monkeypatch.setattr("headspan.tasks.classification.class_truths", lambda *_: numbers)
    vectors = np.random.default_rng(0).standard_normal((3, toy_store.joint)).astype(np.float32)
    monkeypatch.setattr(
        "headspan.tasks.classification.embed_classes", lambda *_, **__: {"toy": Classes(("a", "b", "c"), vectors)}
    )
    toy = Task("toy", "accuracy", classes=("a", "b", "c"), templates=("{c}",))
    keep = tmp_path / "keep"
    found = study(toy_store, [toy], ["L0.H1,L2.H0", "random"], "total", draws=3, keep=keep)
    assert len(found.sets) == 4
    embeddings = hs.prune.total_effect(toy_store, [[], *(each.heads for each in found.sets)])
    shares = [((each @ vectors.T).argmax(axis=1) == numbers).mean() for each in embeddings]
    assert [found.tasks[0].whole["accuracy"], *found.tasks[0].values] == pytest.approx(shares)
    # The embeddings of all sets were kept, and the same call uses them.
    assert study(toy_store, [toy], ["L0.H1,L2.H0", "random"], "total", draws=3, keep=keep) == found
    assert sum(path.stat().st_size for path in keep.rglob("*")) > embeddings.nbytes
