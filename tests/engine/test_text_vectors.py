"""Vectors of texts: embedding them never writes to a store, and happens once for each model and pool."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.store import results
from headspan.texts import vectors as text_vectors_module
from headspan.texts.stored import find_vectors, keep_vectors, stored_pool
from headspan.texts.vectors import embed_pool, forget_vectors, text_vectors
from tests.conftest import relative_files

TEXTS = ["a cat", "two dogs in the rain", "red"]


def refuse_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headspan.model.load.load_stored_model", lambda *_: pytest.fail("the model was loaded"))


def test_embedding_texts_leaves_every_file_of_the_store_unchanged(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    before = relative_files(toy_copy)
    text_vectors(store, TEXTS)
    hs.prune.embed_classes(store, {"pet": {"cat": ["a cat", "cats"], "dog": ["a dog"]}})
    hs.explore.nearest_to_text(store, "a cat", [(2, 0)])
    assert relative_files(toy_copy) == before


def test_texts_are_embedded_once_for_all_stores_of_a_model(
    toy_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = text_vectors(hs.open(toy_copy), TEXTS)
    other = hs.open(shutil.copytree(toy_copy, tmp_path / "other.zarr"))
    refuse_the_model(monkeypatch)
    assert (text_vectors(other, hs.Pool("named", tuple(TEXTS), ("a", "b", "c"))) == first).all()
    forget_vectors()
    with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
        text_vectors(other, TEXTS)


def test_a_model_of_the_same_weights_but_another_tokenizer_gets_vectors_of_its_own(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text_vectors(hs.open(toy_copy), TEXTS)
    other = hs.open(toy_copy)
    other.attributes["model_config"]["text_cfg"]["tokenizer_kwargs"] = {"clean": "whitespace"}
    refuse_the_model(monkeypatch)
    with pytest.raises(pytest.fail.Exception, match="the model was loaded"):
        text_vectors(other, TEXTS)


def test_vectors_are_read_only_since_the_cache_shares_them(toy_store: hs.Store) -> None:
    vectors = text_vectors(toy_store, TEXTS)
    with pytest.raises(ValueError, match="read-only"):
        vectors[0, 0] = 1


def test_the_cache_drops_the_vectors_that_were_used_longest_ago(
    toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = text_vectors(toy_store, TEXTS).nbytes
    monkeypatch.setattr(text_vectors_module, "_CACHE_BYTES", 2 * size)
    others = [[f"{text} {number}" for text in TEXTS] for number in range(2)]
    text_vectors(toy_store, others[0])
    text_vectors(toy_store, TEXTS)
    text_vectors(toy_store, others[1])
    refuse_the_model(monkeypatch)
    text_vectors(toy_store, TEXTS)
    with pytest.raises(pytest.fail.Exception):
        text_vectors(toy_store, others[0])


def test_kept_vectors_are_found_under_any_name_and_need_no_model(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    embedded = embed_pool(store, hs.Pool("mine", tuple(TEXTS)))
    assert keep_vectors(store, embedded) == "mine"
    assert stored_pool(store, "mine") == embedded.pool
    forget_vectors()
    refuse_the_model(monkeypatch)
    np.testing.assert_array_equal(text_vectors(store, TEXTS), embedded.vectors)
    found = find_vectors(store, hs.read_pool(TEXTS))
    assert found is not None
    assert found.text_sha256 == store.attributes["text_sha256"]
    assert find_vectors(store, hs.read_pool(TEXTS[1:])) is None


def test_vectors_are_kept_once_and_a_second_pool_of_the_same_name_gets_its_own(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    first = embed_pool(store, hs.Pool("mine", tuple(TEXTS)))
    keep_vectors(store, first)
    before = relative_files(toy_copy)
    assert keep_vectors(store, first) == "mine"
    assert relative_files(toy_copy) == before
    other = embed_pool(store, hs.Pool("mine", tuple(TEXTS[::-1])))
    assert keep_vectors(store, other) == f"mine-{other.pool.sha256[:8]}"
    assert len(results.runs(store, "texts")) == 2


def test_damaged_vectors_are_embedded_again_and_replaced(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    embedded = embed_pool(store, hs.Pool("mine", tuple(TEXTS)))
    keep_vectors(store, embedded)
    before = relative_files(toy_copy)
    for path in (toy_copy / "texts" / "mine" / "vectors").rglob("*"):
        if path.is_file() and path.name != "zarr.json":
            path.write_bytes(b"")
    np.testing.assert_array_equal(text_vectors(store, embedded.pool), embedded.vectors)
    keep_vectors(store, embedded)
    assert relative_files(toy_copy) == before
