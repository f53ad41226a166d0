"""Vectors of texts: embedding them never writes to a store, and happens once for each model and text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.io.local import LocalStorage
from headspan.model import text as text_encoding
from headspan.model.load import load_stored_model
from headspan.run.image_encoder import forget_models
from headspan.store import results
from headspan.texts import vectors as text_vectors_module
from headspan.texts.stored import EmbeddedPool, find_vectors, keep_vectors, largest_pool, stored_pool
from headspan.texts.user_cache import cache_file, cache_vectors, find_cached
from headspan.texts.vectors import embed_pool, forget_vectors, text_vectors
from tests.conftest import relative_files
from tests.warm_python import FORKED

TEXTS = ["a cat", "two dogs in the rain", "red"]


def refuse_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_models()
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
    # The next process finds them in the user's cache, text by text.
    assert (text_vectors(other, [TEXTS[2], TEXTS[0], TEXTS[2]]) == first[[2, 0, 2]]).all()
    cache_file().unlink()
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
    cache_file().unlink()
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
    cache_file().unlink()
    refuse_the_model(monkeypatch)
    np.testing.assert_array_equal(text_vectors(store, TEXTS), embedded.vectors)
    found = find_vectors(store, hs.read_pool(TEXTS))
    assert found is not None
    assert found.text_sha256 == store.attributes["text_sha256"]
    assert find_vectors(store, hs.read_pool(TEXTS[1:])) is None


def test_one_query_lists_the_kept_pools_once_however_many_there_are(
    toy_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = hs.open(toy_copy)
    joint = np.eye(store.joint, dtype=np.float32)
    for number, texts in enumerate((2, 4, 3)):
        pool = hs.Pool(f"pool{number}", tuple(f"text {number}.{text}" for text in range(texts)))
        keep_vectors(store, EmbeddedPool(pool, joint[number : number + texts], store.attributes["text_sha256"]))
    listed = []
    plain = LocalStorage.list

    def counted(storage: LocalStorage, folder: str = "") -> Iterator[str]:
        listed.append(folder)
        return plain(storage, folder)

    monkeypatch.setattr(LocalStorage, "list", counted)
    found = find_vectors(store, hs.read_pool(["text 0.0", "text 0.1"]))
    assert found is not None
    assert found.pool.name == "pool0"
    np.testing.assert_array_equal(found.vectors, joint[:2])
    assert listed == ["texts"]
    assert find_vectors(store, hs.read_pool(["missing"])) is None
    assert listed == ["texts"] * 2
    largest = largest_pool(store)
    assert largest is not None
    assert largest.name == "pool1"
    assert listed == ["texts"] * 3
    listed.clear()
    hs.explore.head_pursuit(store, ["text 2.0", "text 2.1", "text 2.2"], 1, draws=0)
    assert listed.count("texts") == 1


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


def unit_vectors(count: int, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, 24)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_only_new_texts_of_a_pool_are_embedded(toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text_vectors(toy_store, TEXTS)
    embedded: list[list[str]] = []
    encode = text_encoding.encode_texts

    def noted(model: object, texts: list[str], **others: object) -> np.ndarray:
        embedded.append(list(texts))
        return encode(model, texts, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(text_encoding, "encode_texts", noted)
    forget_vectors()
    found = text_vectors(toy_store, ["new", *TEXTS, "newer", "new"])
    assert embedded == [["new", "newer"]]
    assert (found[1:4] == first).all()
    assert (found[0] == found[5]).all()
    np.testing.assert_allclose(found[4], encode(*loaded(toy_store), ["newer"])[0], rtol=1e-5, atol=1e-6)


def loaded(store: hs.Store) -> tuple[object]:
    return (load_stored_model(store.attributes, store.path, None, lambda _: None),)


@pytest.mark.parametrize("damage", ["not a database", "cut", "a byte of a vector", "a folder", "no permission"])
def test_a_damaged_cache_of_vectors_is_ignored_and_written_again(
    damage: str, toy_store: hs.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    texts = [f"text {number}" for number in range(40)]
    first, path = text_vectors(toy_store, texts), cache_file()
    forget_vectors()
    data = path.read_bytes()
    if damage == "not a database":
        path.write_bytes(b"not a database" * 100)
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a byte of a vector":
        place = data.index(first[7].tobytes())
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif damage == "a folder":
        path.unlink()
        path.mkdir()
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")
    np.testing.assert_allclose(text_vectors(toy_store, texts), first, rtol=1e-5, atol=1e-6)
    if damage in ("not a database", "cut", "a byte of a vector"):
        # The first run may only have deleted the file; the next one writes it.
        forget_vectors()
        text_vectors(toy_store, texts)
        forget_vectors()
        refuse_the_model(monkeypatch)
        text_vectors(toy_store, texts)


def test_the_cache_of_vectors_distinguishes_models_texts_and_dimensions() -> None:
    vectors = unit_vectors(3)
    cache_vectors("a", ["x", "y", "é'"], vectors)
    found = find_cached("a", ["é'", "x", "z"], 24)
    assert found.keys() == {"é'", "x"}
    assert (found["é'"] == vectors[2]).all()
    assert find_cached("b", ["x"], 24) == find_cached("a", ["x"], 25) == {}
    assert find_cached("a", [], 24) == {}
    many = [f"{number}" for number in range(1234)]
    cache_vectors("a", many, unit_vectors(1234, 1))
    assert len(find_cached("a", many, 24)) == 1234


def test_the_cache_of_vectors_stays_below_its_limit_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    monkeypatch.setattr("headspan.texts.user_cache._MOST_BYTES", limit)
    for number in range(20):
        cache_vectors("a", [f"{number} {each}" for each in range(200)], unit_vectors(200, number))
    assert cache_file().stat().st_size < 1.5 * limit
    assert len(find_cached("a", [f"19 {each}" for each in range(200)], 24)) == 200
    assert find_cached("a", [f"0 {each}" for each in range(200)], 24) == {}


WRITER = """
import sys
import numpy as np
from headspan.texts.user_cache import cache_vectors
for number in range(20):
    cache_vectors("m", [f"{sys.argv[1]} {number} {each}" for each in range(10)], np.ones((10, 4), np.float32))
"""


def test_several_processes_write_the_cache_of_vectors_at_the_same_time() -> None:
    writers = [subprocess.Popen([sys.executable, "-c", FORKED + WRITER, name]) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    texts = [f"{name} {number} {each}" for name in "abc" for number in range(20) for each in range(10)]
    assert len(find_cached("m", texts, 4)) == 600


def test_tests_never_use_the_cache_of_the_user() -> None:
    assert "headspan-tests-" in os.environ["XDG_CACHE_HOME"]
    assert cache_file().is_relative_to(os.environ["XDG_CACHE_HOME"])
