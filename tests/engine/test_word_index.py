"""The index of words finds the same captions as a scan with the regular expression does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from benchmarks import random_store
from headspan.background import finish
from headspan.shards.samples import Sample
from headspan.store.schema import Dimensions
from headspan.store.select import rows_with_words
from headspan.web.samples import word_index as module
from headspan.web.samples import words
from headspan.web.samples.word_index import WordIndex, word_index
from headspan.web.samples.words import packed_words

CAPTIONS = [
    "A dog.",
    "dogma",
    "DOG,cat;dog",
    None,
    "",
    "...",
    "Ein BÄR und ein Bär",
    "straße STRASSE",
    "cafe\u0301 café",
    "Ǆ ǆ ǅ",
    "K (kelvin) \u212a k",
    "i İ ı I",
    "犬 と 猫",
    "кот КОТ",
    "dog_1 dog-1 1 01",
    "ﬁsh fish",
    "the dog\tthe\ndog",
    "a\u00a0dog",
    "ſ s S",
]
WORDS = ["dog", "DOG", "bär", "BÄR", "straße", "café", "cafe\u0301", "ǆ", "k", "K", "i", "İ", "ı", "犬", "кот", "dog_1"]
WORDS += ["1", "fish", "ﬁsh", "a", "ſ", "s", "none", "ΔΔ"]


def store_with(folder: Path, captions: list[str | None], monkeypatch: pytest.MonkeyPatch) -> hs.Store:
    def samples(images, random, with_captions):  # type: ignore[no-untyped-def]
        for row, caption in enumerate(captions):
            yield Sample(row, str(row), "0.tar", f"{row}.jpg", 0, 1, caption)

    monkeypatch.setattr(random_store, "_samples", samples)
    size = Dimensions(
        *(len(captions), 8),
        **{"layers": (0,), "all_layers": 1, "direct_layers": 1, "heads": 1, "head_dim": 4},
        **{"tokens": 2, "prefix_tokens": 1, "joint": 6, "terms": 2},
    )
    random_store.write_store(folder / "run.zarr", size, ("heads",), np.random.default_rng(0))
    return hs.open(folder / "run.zarr")


def test_words_are_found_as_by_a_scan_in_all_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path, CAPTIONS, monkeypatch)
    index = WordIndex.of(store)
    assert index is not None
    for word in WORDS:
        found = index.rows_with((word,))
        assert found is not None, word
        np.testing.assert_array_equal(found, rows_with_words(store, [word]), err_msg=word)
    several = index.rows_with(tuple(WORDS))
    np.testing.assert_array_equal(several, rows_with_words(store, WORDS))


def test_what_is_not_one_word_is_left_to_a_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path, CAPTIONS, monkeypatch)
    index = WordIndex.of(store)
    assert index is not None
    for phrase in ("a dog", "dog-1", "dog.", "...", ""):
        assert index.rows_with(("dog", phrase)) is None
    wanted = np.packbits(rows_with_words(store, ["dog", "the dog"]), axis=1)
    for _ in range(2):
        np.testing.assert_array_equal(packed_words(store, ("dog", "the dog")), wanted)
        finish()


def test_the_first_question_is_answered_by_a_scan_and_later_ones_by_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path, CAPTIONS, monkeypatch)
    first = packed_words(store, ("dog",))
    finish()
    assert isinstance(word_index(store), WordIndex)
    monkeypatch.setattr(words, "rows_with_words", None)
    np.testing.assert_array_equal(packed_words(store, ("dog",)), first)


def test_a_store_of_too_many_words_or_without_captions_has_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert WordIndex.of(store_with(tmp_path, [None, "", None], monkeypatch)) is None
    (tmp_path / "more").mkdir()
    monkeypatch.setattr(module, "_MOST_WORDS", 20)
    assert WordIndex.of(store_with(tmp_path / "more", CAPTIONS, monkeypatch)) is None
