"""Saved results of uses of features: runs of their own kind, made from scores, read without torch and by the report."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.errors import NotSavedError, StoreError
from headspan.events import ignore
from headspan.features.saved import read_scores, save_scores
from headspan.features.scores.result import FeatureScores
from headspan.features.uses.edit_result import EditedImage
from headspan.features.uses.saved import keep_use, read_use
from headspan.features.uses.use import Use
from headspan.report.collect import write_report
from headspan.store.kept_runs import list_runs
from headspan.store.write.removal import remove_runs
from headspan.texts.stored import EmbeddedPool, keep_vectors
from tests.engine.hand_made_features import hand_made_scores
from tests.engine.hand_made_uses import hand_made_attack, hand_made_bias, hand_made_edit, hand_made_edits
from tests.engine.test_kept_runs import read_only
from tests.engine.test_report import Outline


@pytest.fixture
def scored(toy_copy: Path) -> tuple[hs.Store, FeatureScores]:
    store = hs.open(toy_copy)
    directions = np.random.default_rng(1).normal(size=(9, store.joint))
    return store, save_scores(store, hand_made_scores(directions, store.images))


def _same(one: Any, other: Any) -> None:
    for each in fields(one):
        values, others = getattr(one, each.name), getattr(other, each.name)
        if isinstance(values, np.ndarray):
            assert values.dtype == others.dtype, each.name
            np.testing.assert_array_equal(values, others, each.name)
        elif each.name == "controls":
            for own, its in zip(values, others, strict=True):
                _same(own, its)
        else:
            # NaN equals NaN in their texts.
            assert repr(values) == repr(others), each.name


def _kept(store: hs.Store, found: Use, scores: FeatureScores, run: str | None, overwrite: bool = False) -> Use:
    return keep_use(store, found, scores, run, overwrite, ignore)


def test_each_use_comes_back_as_it_was_saved_and_is_made_from_its_scores(
    scored: tuple[hs.Store, FeatureScores],
) -> None:
    store, scores = scored
    uses: dict[str, Use] = {
        "bias": hand_made_bias(),
        "attack": hand_made_attack(),
        "edits": hand_made_edits(),
        "edit": hand_made_edit(store),
    }
    assert _kept(store, uses["bias"], scores, None).lineage is not None
    assert not list_runs(store).to_frame()["kind"].eq("uses").any()
    for name, found in uses.items():
        saved = _kept(store, found, scores, name)
        assert saved.lineage is not None
        assert scores.lineage is not None
        assert dict(saved.lineage.made_from) == {"features/hand": scores.lineage.checksum}
        _same(saved, read_use(hs.open(store.path), name))
    listed = {each.name: each.settings for each in hs.runs(store) if each.kind == "uses"}
    assert listed == {
        "attack": "attacks on shape, 12 images, features of hand",
        "bias": "probes of colour on 11 images, features of hand",
        "edit": "a with cross-modal features of a <b>text</b>, features of hand",
        "edits": "edits of 9 pairs, donors are captions, features of hand",
    }
    facts = hs.info(store).facts
    assert (facts["uses"], facts["features"]) == ("attack, bias, edit, edits", "hand")
    with pytest.raises(StoreError, match=r"has the uses runs attack, bias, edit, edits; name one with --run"):
        read_use(store)


def test_neighbours_stay_the_same_images_when_the_store_shows_others(scored: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = scored
    edited = hand_made_edit(store)
    _kept(store, edited, scores, "edit")
    all_rows = hs.open(store.path, include_failed=True)
    assert len(all_rows.rows) > store.images
    found = read_use(all_rows)
    assert isinstance(found, EditedImage)
    assert (all_rows.rows[found.images] == store.rows[edited.images]).all()


def test_a_use_is_replaced_on_request_only_removed_by_name_and_of_older_scores_afterwards(
    scored: tuple[hs.Store, FeatureScores], capsys: pytest.CaptureFixture[str]
) -> None:
    store, scores = scored
    first = _kept(store, hand_made_bias(), scores, "mine")
    assert _kept(store, hand_made_bias(), scores, "mine") == first
    other = replace(hand_made_bias(), seed=4)
    with pytest.raises(StoreError, match="uses run 'mine' already exists with other content"):
        _kept(store, other, scores, "mine")
    _kept(store, other, scores, "mine", overwrite=True)
    assert read_use(store, "mine").seed == 4
    done = remove_runs(store, "features/hand")
    assert done.marked == ("uses/mine",)
    assert read_use(store).older == "features/hand"
    assert [each.state for each in hs.runs(store) if each.kind == "uses"] == ["of an older features/hand"]
    with pytest.raises(StoreError, match="uses/new cannot be saved, because the features/hand that it was made from"):
        _kept(store, hand_made_bias(), scores, "new")
    save_scores(store, scores)
    assert read_use(store).older is None
    assert main(["runs", str(store.path), "--remove", "uses/mine"]) == 0
    assert "removed uses/mine" in capsys.readouterr().out
    with pytest.raises(StoreError, match="has no uses run; run headspan features use"):
        read_use(store)


def test_names_that_features_gain_or_change_leave_uses_as_they_are(scored: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = scored
    saved = _kept(store, hand_made_bias(), scores, "mine")
    texts = [f"a thing {number}" for number in range(9)]
    notes: list[str] = []
    for pool in (hs.Pool("first", tuple(texts)), hs.Pool("second", tuple(texts[::-1]))):
        called = keep_vectors(store, EmbeddedPool(pool, np.eye(9, store.joint, dtype=np.float32), None))
        named = replace(scores, names=tuple((each,) for each in pool.texts), name_pool=called)
        if pool.name == "second":
            with pytest.raises(
                StoreError, match=r"'hand' already exists with other names; .*which replaces its names$"
            ):
                save_scores(store, named)
        save_scores(store, named, overwrite=True, on_progress=lambda event: notes.append(event.note))
        found = read_use(store, "mine")
        assert found.older is None
        assert found.lineage == saved.lineage
        assert read_scores(store).names == named.names
    assert notes == ["replaced the earlier features/hand"]
    # The same scores without names leave those that there are.
    save_scores(store, scores)
    assert read_scores(store).names == named.names
    # A use that is saved now is made from the same scores, and does not depend on the pool either.
    _kept(store, hand_made_edits(), read_scores(store), "later")
    remove_runs(store, "texts/second")
    assert read_scores(store).older == "texts/second"
    assert [read_use(store, name).older for name in ("mine", "later")] == [None, None]
    # Other scores are others, named or not.
    other = hand_made_scores(np.random.default_rng(2).normal(size=(9, store.joint)), store.images)
    save_scores(store, other, overwrite=True)
    assert read_use(store, "mine").older == "features/hand"


def test_a_store_that_may_only_be_read_gives_the_result(scored: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = scored
    with read_only(store.path), pytest.raises(NotSavedError, match="Permission denied") as caught:
        _kept(store, hand_made_bias(), scores, "mine")
    assert caught.value.result.rows[1] == hand_made_bias().rows[1]


def test_saved_uses_are_shown_by_their_own_command_without_torch(
    scored: tuple[hs.Store, FeatureScores], capsys: pytest.CaptureFixture[str]
) -> None:
    store, scores = scored
    for name, found in {
        "bias": hand_made_bias(),
        "attack": hand_made_attack(),
        "edits": hand_made_edits(),
        "edit": hand_made_edit(store),
    }.items():
        _kept(store, found, scores, name)
    for use, run, words in (
        ("bias", "bias", "11 test images, 10 images trained the probes; residual kept"),
        ("attack", "attack", "untargeted: share of images named rightly"),
        ("edit", "edits", "9 pairs, donors are captions, 5 neighbours each"),
        ("edit", "edit", "random features are the mean of 1 set, with the range"),
    ):
        assert main(["features", "use", use, str(store.path), "--run", run]) == 0
        assert words in capsys.readouterr().out
    assert main(["features", "use", "bias", str(store.path), "--run", "attack"]) == 2
    said = capsys.readouterr().err
    assert "--run attack: is a saved result of features use attack, not of bias; show it with headspan features" in said
    assert main(["features", "use", "bias", str(store.path), "--run", "none"]) == 2
    assert "holds no uses run 'none' (has attack, bias, edit, edits)" in capsys.readouterr().err
    script = (
        "import sys; from headspan.cli.main import main; "
        f"code = main(['features', 'use', 'edit', {str(store.path)!r}, '--run', 'edit']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_a_damaged_use_says_which_command_makes_it_again(scored: tuple[hs.Store, FeatureScores]) -> None:
    store, scores = scored
    _kept(store, hand_made_attack(), scores, "mine")
    shutil.rmtree(Path(f"{store.path}/records/results/uses"))
    file = Path(f"{store.path}/uses/mine/zarr.json")
    file.write_text(file.read_text().replace('"epsilon"', '"epsilom"'))
    with pytest.raises(StoreError, match=r"settings that headspan does not write \('epsilon'\); run headspan features"):
        read_use(hs.open(store.path))


def test_the_report_shows_saved_uses_with_their_controls(
    scored: tuple[hs.Store, FeatureScores], tmp_path: Path
) -> None:
    store, scores = scored
    for name, found in {"bias": hand_made_bias(), "edit": hand_made_edit(store)}.items():
        _kept(store, found, scores, name)
    page = write_report(store, tmp_path / "r.html").read_text(encoding="utf-8")
    outline = Outline(page)
    assert (outline.complaints, outline.open) == ([], [])
    texts = outline.body_texts()
    assert "What features are used for" in texts
    assert "a with the cross-modal features of a <b>text</b>" in texts
    assert "a <b> remark" in texts
    section = re.search(r"What features are used for.*?</section>", page, re.S)
    assert section is not None
    # Of the two rows of the probe, and of the shares of the edit's neighbours, those of random features are controls.
    assert re.findall(r'<tr class="drawn"><th scope="row">([^<]*)</th><td>([^<]*)', section[0]) == [
        ("probe", "as many random features"),
        ("as many random features", "50.0 %"),
    ]
    remove_runs(store, "features/hand")
    directions = np.random.default_rng(2).normal(size=(9, store.joint))
    save_scores(store, hand_made_scores(directions, store.images))
    older = write_report(hs.open(store.path), tmp_path / "older.html").read_text(encoding="utf-8")
    assert "What features are used for" not in older
