"""The demo runs offline from start to end, and its trained model meets every claim of the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from markupsafe import escape

import headspan as hs
from headspan.demo import DemoResult, run
from headspan.demo_folder import MARKER
from headspan.errors import StoreError
from headspan.run.verify import verify
from headspan.world.checks import FACTOR_OF, GroundTruth
from headspan.world.ground_truth import read_ground_truth
from headspan.world.reference_scores import CONTRASTIVE_ONLY, RANDOM, TRAINED, reference_scores
from tests.conftest import relative_files


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run(tmp_path_factory.mktemp("demo") / "out")


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
    lead = page.index("Checked against the known scenes")
    assert lead < page.index("The run</h2>")
    for factor, each in demo.truth.zero_shot.items():
        assert f"{100 * each.share:.1f}" in page[lead : lead + 20_000], factor
    assert read_ground_truth(store, "world") == demo.truth


def test_the_demo_scores_and_names_features_that_both_sides_share(demo: DemoResult) -> None:
    scores = hs.features.read_scores(demo.summary.path, "world")
    assert scores.pairs == 2000
    folder = Path(demo.summary.path).with_name("run.features")
    assert scores.dictionary == str(folder)
    assert hs.features.open_dictionary(folder).sha256 == scores.dictionary_sha256
    cross = hs.features.feature_table(scores, "cross-modal")
    assert len(cross) > 20
    # By chance it would be 5 %.
    assert scores.name_mixture_p is not None
    assert (scores.name_mixture_p[cross.features] < 0.05).mean() > 0.3
    assert "Sparse features" in demo.report.read_text(encoding="utf-8")
    assert sorted(path.name for path in folder.parent.iterdir()) == [
        *(MARKER, "random.zarr", "report.html", "run.features", "run.zarr", "shards"),
    ]


def test_heads_of_the_trained_model_are_above_chance_and_those_of_random_weights_are_not(demo: DemoResult) -> None:
    store = hs.open(demo.summary.path)
    trained = hs.spans.read_spans(store)
    at_random = hs.spans.read_spans(hs.open(Path(demo.summary.path).with_name("random.zarr")))
    found = trained.above_chance()
    assert found.above >= 20
    assert found.p <= 0.05
    by_chance = at_random.above_chance()
    assert by_chance.above <= by_chance.high
    # The total at all texts, which is larger for random weights, says nothing.
    assert at_random.explained[..., -1].mean() > trained.explained[..., -1].mean()
    scores = hs.concepts.read_scores(store)
    high = [head for head in trained.heads() if scores.score(*head) == 5]
    assert len(high) == 5
    # One head that shows shapes has five texts of one concept although they explain no more than chance.
    assert sum(trained.chance(*head).p <= 0.05 for head in high) >= 4


def test_the_report_shows_both_controls_beside_the_model(demo: DemoResult) -> None:
    page = demo.report.read_text(encoding="utf-8")
    section = page[page.index("Checked against the known scenes") : page.index("The run</h2>")]
    assert set(demo.truth.controls) == {CONTRASTIVE_ONLY, RANDOM}
    assert demo.truth.controls[CONTRASTIVE_ONLY] == reference_scores()[CONTRASTIVE_ONLY]
    for name, control in demo.truth.controls.items():
        assert f"<b>{name}</b> ({escape(control.about)})" in section
        assert f">{name}</th>" in section
        for share in (
            *(each.share for each in control.zero_shot.values()),
            control.maps.mass_inside,
            control.maps.average_precision,
        ):
            assert f">{100 * share:.1f}\u202f%<" in section, name
        for each in control.neighbours:
            assert f">{100 * each.through_heads:.1f}<" in section, name
        for each in control.contrasts:
            if each.right.heads is not None:
                assert f">{100 * each.right.heads:.1f} | {100 * (each.ordered.heads or 0):.1f}<" in section, name


@pytest.mark.parametrize("name", [TRAINED, RANDOM])
def test_the_demo_gives_the_shipped_scores(name: str, truth: GroundTruth) -> None:
    found, shipped = truth.controls.get(name, truth), reference_scores()[name]
    # On another processor, sums in another order may change what a few images are named.
    for factor, each in shipped.zero_shot.items():
        assert found.zero_shot[factor].share == pytest.approx(each.share, abs=0.005), factor
        assert (found.zero_shot[factor].chance, found.zero_shot[factor].images) == (each.chance, each.images)
    for score in ("mass_inside", "area", "average_precision"):
        assert getattr(found.maps, score) == pytest.approx(getattr(shipped.maps, score), abs=0.005)
    for each, wanted in zip(found.text_maps, shipped.text_maps, strict=True):
        assert each.auc.heads == pytest.approx(wanted.auc.heads, abs=0.005), each.concept
    for each, wanted in zip(found.contrasts, shipped.contrasts, strict=True):
        # One scene of fewer than 200.
        assert each.right.every == pytest.approx(wanted.right.every, abs=0.01), each.concept


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


def test_three_concepts_have_high_heads_and_with_random_weights_none_has(truth: GroundTruth) -> None:
    own = {concept for concept, heads in truth.high_heads.items() if heads}
    assert len(own) >= 3
    assert sum(truth.controls[RANDOM].high_heads.values()) == 0


def test_neighbours_share_the_factor_of_three_concepts_more_often_through_their_heads_than_through_all(
    truth: GroundTruth,
) -> None:
    better = [each.concept for each in truth.neighbours if each.through_heads > each.through_all]
    assert len(better) >= 3, truth.neighbours
    # At least three of them by half.
    assert sum(each.through_heads > 1.5 * each.through_all for each in truth.neighbours) >= 3
    assert all(each.through_heads > each.chance for each in truth.neighbours)


def test_maps_of_an_object_have_their_evidence_on_it(truth: GroundTruth) -> None:
    assert truth.maps.images >= 200
    assert truth.maps.mass_inside > 3 * truth.maps.area
    assert truth.maps.average_precision > 3 * truth.maps.area


def test_ablating_the_heads_of_a_concept_hurts_its_own_factor_most(truth: GroundTruth) -> None:
    # The loss of a concept's own factor, where it exceeds every other loss by half.
    hurt = []
    for each in truth.ablations:
        lost = {factor: truth.zero_shot[factor].share - share for factor, share in each.accuracies.items()}
        own = lost.pop(FACTOR_OF[each.concept])
        # Backgrounds have two factors, kind and colour.
        others = [share for factor, share in lost.items() if not (each.concept == "backgrounds" and "back" in factor)]
        if own > 1.5 * max(others):
            hurt.append(own)
    assert sum(own > 0.1 for own in hurt) >= 4, truth.ablations


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo that draws two shards and stops before the model is needed."""

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("headspan.demo.IMAGES", 4)
    monkeypatch.setattr("headspan.demo.IMAGES_PER_SHARD", 2)
    monkeypatch.setattr("headspan.demo.analyse_scenes", stop)


def folder_of_names_like_ours(folder: Path) -> dict[str, bytes]:
    """A user's files under the names that a demo uses."""
    for name in ("shards/000000.tar", "run.zarr/zarr.json", "random.zarr/zarr.json", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    return relative_files(folder)


@pytest.mark.parametrize(
    "marker",
    [
        None,
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"files": 3}',
        '{"files": null}',
        '{"files": {"report.html": 13}}',
        '{"making": "../..", "files": {}}',
        '{"making": "0a1b2c3d", "files": null}',
        '{"making": "0a1b2c3d", "files": {"report.html": [13, 1], "shards": null}}',
    ],
)
def test_a_folder_without_a_demos_marker_is_refused_and_unchanged(
    marker: str | None, tmp_path: Path, quick: None
) -> None:
    folder_of_names_like_ours(tmp_path)
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    before = relative_files(tmp_path)
    with pytest.raises(StoreError, match=r"choose another --out, or (delete the folder yourself|move it away)"):
        run(tmp_path)
    assert relative_files(tmp_path) == before


def half_made(out: Path) -> Path:
    """Leave an interrupted demo in `out`; returns its temporary folder."""
    with pytest.raises(KeyboardInterrupt):
        run(out)
    return out / f".headspan-demo-{json.loads((out / MARKER).read_bytes())['making']}"


def test_an_interrupted_demo_is_replaced(tmp_path: Path, quick: None) -> None:
    out = tmp_path / "out"
    making = half_made(out)
    drawn = relative_files(out)
    assert set(drawn) == {MARKER, "shards/000000.tar", "shards/000001.tar"}
    # A killed demo leaves unfinished files: a store, a plan, a report, a marker.
    token = making.name.split("-")[-1]
    for path in (
        making / "run.zarr/heads/c/0",
        making / ".random.zarr.planning-1a2b/zarr.json",
        making / ".report.html.1a2b.tmp",
        out / f".{MARKER}.{token}.tmp",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    half_made(out)
    assert relative_files(out) == drawn


def test_a_demo_interrupted_between_its_moves_is_replaced(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        half_made(out)
    half_made(out)
    assert set(relative_files(out)) == {MARKER, "shards/000000.tar", "shards/000001.tar"}


@pytest.mark.parametrize(
    "name",
    [
        "thesis.txt",
        "shards/thesis.txt",
        "shards/0042-mine.tar",
        "shards/own/000000.tar",
        "run.zarr.backup/zarr.json",
        "run.zarr/zarr.json",
        "run.zarr",
        "report.html",
        ".report.html.backup/v",
        "link",
        "photos/",
        "shards/photos/",
    ],
)
def test_a_users_file_in_an_interrupted_demo_is_kept(name: str, tmp_path: Path, quick: None) -> None:
    out = tmp_path / "out"
    half_made(out)
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "link":
        (tmp_path / "elsewhere.zarr").mkdir()
        path.symlink_to(tmp_path / "elsewhere.zarr")
    elif name.endswith("/"):
        path.mkdir()
    else:
        path.write_text("years of work")
    before = relative_files(tmp_path)
    with pytest.raises(StoreError, match=r"out: holds \S+, which the earlier demo did not write"):
        run(out)
    assert relative_files(tmp_path) == before
    assert path.exists()


@pytest.mark.parametrize("change", ["labels", "thesis", "folder", "report", "same size"])
def test_a_users_change_to_a_finished_demo_is_kept(change: str, demo: DemoResult, tmp_path: Path, quick: None) -> None:
    out = Path(shutil.copytree(demo.report.parent, tmp_path / "out"))
    if change == "labels":
        hs.textspan(hs.open(out / "run.zarr"), "world", texts_per_head=5, run="mine")
    elif change == "thesis":
        (out / "run.zarr" / "thesis.txt").write_text("years of work")
    elif change == "folder":
        (out / "run.zarr" / "photos").mkdir()
    elif change == "same size":
        page = (out / "report.html").read_bytes()
        (out / "report.html").write_bytes(page[:-2] + b"!" + page[-1:])
    else:
        (out / "report.html").write_text("notes")
    before = relative_files(out)
    with pytest.raises(StoreError, match=r"which the earlier demo did not write, or which has changed since; choose"):
        run(out)
    assert relative_files(out) == before
    assert (out / "run.zarr" / "photos").is_dir() == (change == "folder")


def test_a_second_demo_replaces_the_first(demo: DemoResult, tmp_path: Path, quick: None) -> None:
    out = Path(shutil.copytree(demo.report.parent, tmp_path / "out"))
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert set(relative_files(out)) == {MARKER, "shards/000000.tar", "shards/000001.tar"}


def test_a_file_in_the_place_of_the_demos_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("work")
    with pytest.raises(StoreError, match="is a file; choose another --out"):
        run(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "work"
