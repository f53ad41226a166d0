"""The identity of a store is a list of keys; only these decide what may be resumed, repaired and added."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import headspan as hs
from headspan.errors import ModelError, StoreError
from headspan.io.files import checksum
from headspan.io.local import LocalStorage
from headspan.run.repair import repair
from headspan.store.identity import MODEL_KEYS, RUN_KEYS, SIZE_KEYS, differences, identity
from headspan.store.schema import ROOT_COPY
from headspan.store.write.commits import Commits
from headspan.texts.stored import keep_vectors
from headspan.texts.vectors import embed_pool
from tests.conftest import TOY, ToyRun

KEYS = (*MODEL_KEYS, *RUN_KEYS, *SIZE_KEYS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=5,
)


def change_attributes(store: Path, change: dict[str, Any]) -> None:
    """Give a store other attributes, in its metadata and their copy, with checksums that agree."""
    metadata = json.loads((store / "zarr.json").read_text())
    metadata["attributes"]["headspan"].update(change)
    commits = Commits(LocalStorage(store), 0)
    files = commits.planned_files()
    for name in ("zarr.json", ROOT_COPY):
        (store / name).write_text(json.dumps(metadata, indent=2))
        files[name] = checksum(store / name)
    commits.note_plan(files)


@given(key=st.text(), value=JSON)
def test_keys_that_are_not_listed_are_never_compared(toy_store: hs.Store, key: str, value: Any) -> None:
    if key in (*KEYS, "dimensions"):
        return
    assert list(differences(toy_store.attributes, {**toy_store.attributes, key: value}, KEYS)) == []


@given(key=st.sampled_from(KEYS), value=JSON)
def test_every_other_value_of_a_listed_key_is_a_difference(toy_store: hs.Store, key: str, value: Any) -> None:
    other = copy.deepcopy(toy_store.attributes)
    place = other["dimensions"] if key in other["dimensions"] else other
    # The order of the emissions does not matter.
    place[key] = ["mlps", "heads"] if key == "emit" and isinstance(value, list) else value
    found = list(differences(toy_store.attributes, other, KEYS))
    assert len(found) == (identity(toy_store.attributes)[key] != identity(other)[key])
    assert list(differences(other, toy_store.attributes, KEYS)) == [(what, b, a) for what, a, b in found]


def test_a_new_store_has_every_listed_key(toy_store: hs.Store) -> None:
    assert set(identity(toy_store.attributes)) == set(KEYS)


@pytest.mark.parametrize(
    "change",
    [
        {"units": {"heads": "another sentence"}, "sum": {"terms": ["other words"], "through_pool": None}},
        {"version": "99.0", "backend": "another.backend on cuda", "made_with": {}},
        {"model": "another-name", "pretrained": "another-file.pt", "model_config": {"new_key_of_open_clip": 1}},
        {"a_key_of_a_later_headspan": [1, 2, 3]},
    ],
    ids=["sentences", "versions", "names", "later keys"],
)
def test_a_store_whose_descriptions_differ_is_resumed(change: dict[str, Any], toy_copy: Path, toy_run: ToyRun) -> None:
    change_attributes(toy_copy, change)
    assert hs.precompute(out=toy_copy, **toy_run.settings()).skipped == 70


def test_a_store_whose_sentences_differ_is_repaired(toy_copy: Path) -> None:
    change_attributes(toy_copy, {"units": {}, "version": "99.0"})
    spec = hs.open(toy_copy).contents.specs["heads"]
    (toy_copy / spec.file(0)).unlink()
    assert repair(toy_copy).units == (0,)


def test_a_store_is_resumed_with_the_same_weights_under_another_name(
    toy_copy: Path, toy_run: ToyRun, tmp_path: Path
) -> None:
    config, weights = tmp_path / "headspan-toy-renamed.json", tmp_path / "renamed.safetensors"
    shutil.copy(toy_run.config, config)
    shutil.copy(toy_run.weights, weights)
    assert hs.precompute(out=toy_copy, **toy_run.settings(model=str(config), pretrained=str(weights))).skipped == 70


@pytest.mark.parametrize(
    ("vision", "named"),
    [
        ({"pool_type": "avg"}, r'pooling "class token", but this run asks for pooling "mean of the patches"'),
        ({"norm_kwargs": {"eps": 0.1}}, r"norm eps \[1e-05\], but this run asks for norm eps \[0\.1\]"),
    ],
)
def test_a_config_that_makes_the_same_weights_another_model_is_refused(
    vision: dict[str, Any], named: str, toy_copy: Path, toy_run: ToyRun, tmp_path: Path
) -> None:
    config = tmp_path / f"headspan-{tmp_path.name}.json"
    config.write_text(json.dumps({**TOY, "vision_cfg": {**TOY["vision_cfg"], **vision}}))
    with pytest.raises(StoreError, match=named):
        hs.precompute(out=toy_copy, **toy_run.settings(model=str(config)))


def test_keys_that_an_older_store_lacks_are_not_compared(toy_copy: Path, toy_run: ToyRun) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    for key in ("tower", "text_sha256"):
        del metadata["attributes"]["headspan"][key]
    (toy_copy / "zarr.json").write_text(json.dumps(metadata, indent=2))
    assert hs.precompute(out=toy_copy, **toy_run.settings()).skipped == 70


def other_text_tower(toy_run: ToyRun, tmp_path: Path) -> Path:
    """The toy model's weights with the same image tower and another text tower."""
    tensors = load_file(toy_run.weights)
    tensors["text_projection"][0, 0] += 1
    path = tmp_path / "other-text.safetensors"
    save_file(tensors, path)
    return path


def test_text_vectors_of_another_text_tower_are_refused(toy_copy: Path, toy_run: ToyRun, tmp_path: Path) -> None:
    other = other_text_tower(toy_run, tmp_path)
    with pytest.raises(
        ModelError, match=r"other-text\.safetensors: the text tower is [0-9a-f]{12}, but .*copy\.zarr was made"
    ):
        hs.text_vectors(hs.open(toy_copy), ["a cat"], weights=other)


def test_all_texts_of_a_store_without_a_recorded_text_tower_must_share_one(
    toy_copy: Path, toy_run: ToyRun, tmp_path: Path
) -> None:
    metadata = json.loads((toy_copy / "zarr.json").read_text())
    del metadata["attributes"]["headspan"]["text_sha256"]
    (toy_copy / "zarr.json").write_text(json.dumps(metadata, indent=2))
    store = hs.open(toy_copy)
    first = hs.text_vectors(store, ["a cat"])
    keep_vectors(store, embed_pool(store, ["a cat"]))
    with pytest.raises(ModelError, match=r"the weights .*other-text.* are of text tower .*, but its other texts"):
        hs.text_vectors(store, ["a dog"], weights=other_text_tower(toy_run, tmp_path))
    np.testing.assert_array_equal(hs.text_vectors(store, ["a cat"]), first)
    assert hs.text_vectors(store, ["a dog"]).shape == first.shape


@pytest.mark.parametrize("key", MODEL_KEYS)
def test_stores_of_another_model_are_not_added(key: str, toy_copy: Path, toy_store: hs.Store) -> None:
    value: Any = {
        "preprocess": {"mean": [0.5] * 3},
        "tower": {"activation": ["quick_gelu"]},
        "without": ["L0.H1"],
    }.get(key, "0" * 64)
    kept = toy_store.attributes[key]
    change_attributes(toy_copy, {key: {**kept, **value} if isinstance(value, dict) else value})
    with pytest.raises(StoreError, match=r"copy\.zarr: was made with .*; add stores of the same model"):
        hs.textspan(toy_store, ["a cat", "a dog"], texts_per_head=2, also=[hs.open(toy_copy)], save=True)


def test_stores_that_differ_in_words_precision_and_decoding_are_added(
    toy_copy: Path, toy_run: ToyRun, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(toy_copy, tmp_path / "other.zarr"))
    change_attributes(other, {"units": {}, "precision": "bf16", "decode": "fast", "model": "by-another-name"})
    spans = hs.textspan(hs.open(toy_copy), ["a cat", "a dog"], texts_per_head=2, also=[hs.open(other)], save=True)
    assert spans.images == 2 * 67
