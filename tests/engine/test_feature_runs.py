"""Saved scores of features: a run of its own kind, with the lineage of the pool that names it, read without torch."""

from __future__ import annotations

import json
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
from headspan.errors import StoreError
from headspan.features.pairs.space import HEADS, Space
from headspan.features.saved import read_scores, save_scores, settings_of
from headspan.features.scores.result import FeatureScores
from headspan.store.kept_runs import list_runs
from headspan.store.result_values import arrays_of
from headspan.store.results import load
from headspan.store.write.removal import remove_runs
from headspan.store.write.save_result import save_result
from headspan.texts.stored import EmbeddedPool, keep_vectors
from tests.engine.hand_made_features import hand_made_scores

POOL = hs.Pool("small", ("a cat", "a dog", "a <b>car</b>"))


def _scores(store: hs.Store, **changed: Any) -> FeatureScores:
    directions = np.random.default_rng(1).normal(size=(9, store.joint))
    return hand_made_scores(directions, store.images, **changed)


def _same(one: FeatureScores, other: FeatureScores) -> None:
    for each in fields(FeatureScores):
        values, others = getattr(one, each.name), getattr(other, each.name)
        if each.name == "lineage":
            continue
        if isinstance(values, np.ndarray):
            assert values.dtype == others.dtype, each.name
            np.testing.assert_array_equal(values, others, each.name)
        else:
            # NaN equals NaN in their texts.
            assert repr(values) == repr(others), each.name


def test_scores_come_back_as_they_were_saved_with_nan_and_the_space(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    embedding = _scores(store)
    heads = _scores(store, run="heads", space=Space(HEADS, store.joint, "a", None, ((1, 0), (1, 3))))
    for scores in (embedding, heads):
        save_scores(store, scores)
        _same(scores, read_scores(toy_copy, scores.run))
    with pytest.raises(StoreError, match=r"has the features runs hand, heads; name one with --run, in Python with run"):
        read_scores(store)


def test_top_images_stay_the_same_images_when_the_store_shows_others(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    scores = save_scores(store, _scores(store))
    there = scores.top_images >= 0
    rows = store.rows[scores.top_images[there]]
    # Rows that could not be used come and go, as unfinished rows do.
    all_rows = hs.open(toy_copy, include_failed=True)
    assert len(all_rows.rows) > store.images
    found = read_scores(all_rows)
    assert ((found.top_images >= 0) == there).all()
    assert (all_rows.rows[found.top_images[there]] == rows).all()
    assert (found.top_images != scores.top_images).any()
    with pytest.raises(StoreError, match=r"images, but hand names image 999; save scores with the store that they are"):
        save_scores(store, replace(scores, top_images=np.full_like(scores.top_images, 999)), overwrite=True)


def test_a_run_of_an_earlier_version_that_holds_indices_opens_and_gains_names(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    scores = _scores(store)
    save_result(store, "features", "hand", scores, arrays_of(scores), settings_of(scores))
    assert "top_images" in load(store, "features", "hand")[0]
    _same(scores, read_scores(store))
    vectors = np.eye(3, store.joint, dtype=np.float32)
    pool = keep_vectors(store, EmbeddedPool(POOL, vectors, None))
    named = replace(scores, names=(("a cat",),) * 9, name_cosines=np.full((9, 1), 0.5, np.float32), name_pool=pool)
    save_scores(store, named)
    _same(named, read_scores(store))


def test_the_same_scores_are_saved_again_without_change_and_others_are_refused(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    scores = _scores(store)
    saved = save_scores(store, scores)
    assert saved.lineage == save_scores(store, scores).lineage
    other = _scores(store, seed=1)
    with pytest.raises(StoreError, match=r"features run 'hand' already exists with other content; .*--overwrite"):
        save_scores(store, other)
    save_scores(store, other, overwrite=True)
    _same(other, read_scores(store))


def test_named_scores_stay_their_run_and_become_older_when_their_pool_goes(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    scores = save_scores(store, _scores(store))
    vectors = np.eye(3, store.joint, dtype=np.float32)
    pool = keep_vectors(store, EmbeddedPool(POOL, vectors, None))
    names = tuple((POOL.texts[feature % 3],) for feature in range(9))
    named = replace(scores, names=names, name_cosines=np.full((9, 1), 0.5, np.float32), name_pool=pool)
    save_scores(store, named)
    found = read_scores(store)
    _same(named, found)
    assert found.older is None
    run = next(each for each in list_runs(store) if each.kind == "features")
    assert run.settings == f"topk over {store.images} pairs, named from small"
    assert remove_runs(store, "texts/small").marked == ("features/hand",)
    assert read_scores(store).older == "texts/small"
    # The names are those that were given, although the pool is gone.
    assert read_scores(store).names == names


def test_a_damaged_run_is_found_by_verify_and_refused(toy_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = hs.open(toy_copy)
    save_scores(store, _scores(store))
    chunk = next(path for path in (toy_copy / "features/hand/mds").rglob("*") if path.is_file() and path.name == "0")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    with pytest.raises(StoreError, match=r"the features run 'hand' is damaged: .*; run headspan features score again"):
        read_scores(store)
    assert main(["verify", str(toy_copy)]) == 1
    assert "features/hand/mds" in capsys.readouterr().out


def test_scores_are_read_without_torch(toy_copy: Path) -> None:
    save_scores(hs.open(toy_copy), _scores(hs.open(toy_copy)))
    code = "import sys; from headspan.features.saved import read_scores; read_scores(sys.argv[1]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code, str(toy_copy)], capture_output=True, text=True, check=True)
    assert "headspan.features.saved" in loaded.stdout.split()
    assert "torch" not in loaded.stdout.split()


def test_a_setting_of_another_type_is_refused_in_a_sentence_or_read_as_text(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    save_scores(store, _scores(store, names=tuple(("a",) for _ in range(9)), name_chance={"draws": 9.0}))
    # Without the record of its files, the changes below are not refused as damage.
    shutil.rmtree(toy_copy / "records" / "results")
    file = toy_copy / "features" / "hand" / "zarr.json"
    good = json.loads(file.read_text())
    refused = []
    for name in good["attributes"]:
        for bad in ("<b>", ["<b>"], None):
            file.write_text(json.dumps({**good, "attributes": {**good["attributes"], name: bad}}))
            try:
                found = read_scores(toy_copy)
            except StoreError as error:
                refused.append((name, str(error)))
            else:
                assert isinstance(found.pairs, int)
                assert isinstance(found.learner, str)
                assert all(isinstance(text, str) for names in found.names for text in names)
    assert {"pairs", "quality", "similarity_sizes", "name_chance"} <= {name for name, _ in refused}
    assert all("the features run 'hand' holds settings that headspan does not write" in said for _, said in refused)
