"""Which heads a label names, and which image or heads the flags of a query name."""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.query_flags import chosen_heads_of, chosen_image, heads_flags, image_flag
from headspan.concepts.labelled_heads import heads_of
from headspan.concepts.labels import label_heads, save_labels
from headspan.errors import HeadspanError, SettingsError, StoreError
from tests.conftest import BROKEN_ROWS, ToyRun
from tests.engine.test_labels_and_ccs import HEADS, keep


@pytest.fixture
def labelled(toy_copy: Path) -> hs.Store:
    store = hs.open(toy_copy)
    keep(store, HEADS)
    label_heads(store, save=True)
    return store


def test_the_heads_of_a_label_are_those_that_the_run_gives_it(labelled: hs.Store) -> None:
    assert heads_of(labelled, "places") == [(0, 0), (0, 2), (1, 0)]
    assert heads_of(labelled, "Animals", "hand") == [(1, 1)]


def test_free_labels_that_count_as_one_are_one_label(labelled: hs.Store) -> None:
    labels = hs.concepts.read_labels(labelled)
    free = replace(labels, run="free", free=True, names=(("place", "colours", "Places"), ("places", "animals", None)))
    save_labels(labelled, free)
    for label in ("place", "Places", "places", "PLACE"):
        assert heads_of(labelled, label, "free") == [(0, 0), (0, 2), (1, 0)], label


def test_a_missing_label_is_refused_with_those_that_exist(labelled: hs.Store, toy_store: hs.Store) -> None:
    with pytest.raises(SettingsError, match=r"no head has the label 'dogs'; .* hand are: animals, colours, places$"):
        heads_of(labelled, "dogs")
    with pytest.raises(SettingsError, match="holds no labels; run headspan textspan and headspan label"):
        heads_of(toy_store, "places")
    with pytest.raises(StoreError, match="holds no labels run 'other'"):
        heads_of(labelled, "places", "other")
    save_labels(labelled, replace(hs.concepts.read_labels(labelled), run="again"))
    with pytest.raises(StoreError, match="again, hand; name one with --run"):
        heads_of(labelled, "places")


def test_an_image_is_an_index_then_a_file_then_a_key(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = hs.open(toy_run.path)
    keys = store.samples()["key"].to_pylist()
    assert chosen_image(store, "0") == 0
    assert chosen_image(store, str(store.images - 1)) == store.images - 1
    for image in (0, 31, store.images - 1):
        # The toy's keys are digits with zeros before them.
        assert keys[image].startswith("0")
        assert chosen_image(store, keys[image]) == image
    Path("5").touch()
    Path(keys[3]).touch()
    assert chosen_image(store, "5") == 5
    assert chosen_image(store, "./5") == Path("5")
    assert chosen_image(store, keys[3]) == Path(keys[3])


def test_an_image_that_is_nothing_is_refused_with_what_was_expected(toy_run: ToyRun, tmp_path: Path) -> None:
    store = hs.open(toy_run.path)
    last = store.images - 1
    for given in ("dog.jpg", str(store.images), "-1", "", "é" * 300, "a\0b", str(tmp_path)):
        with pytest.raises(SettingsError, match=rf"is neither an index \(0 to {last}\) nor a file, and .* has the key"):
            chosen_image(store, given)
    broken = hs.open(toy_run.path, include_failed=True).samples()["key"][min(BROKEN_ROWS)].as_py()
    with pytest.raises(SettingsError, match=f"with the key '{broken}' has no numbers"):
        chosen_image(store, broken)


def test_every_key_leads_to_its_image(toy_run: ToyRun) -> None:
    every = hs.open(toy_run.path, include_failed=True)
    for row, key in enumerate(every.samples()["key"].to_pylist()):
        assert every.image_of_key(key) == row


def test_keys_are_read_one_unit_at_a_time(toy_run: ToyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    store = hs.open(toy_run.path)
    key = store.samples([50])["key"][0].as_py()
    monkeypatch.setattr("headspan.store.opened.read_table", None)
    monkeypatch.setattr("headspan.store.tables._read", None)
    assert store.image_of_key(key) == 50


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    image_flag(parser)
    heads_flags(parser, "search")
    return parser.parse_args(words)


def test_heads_are_named_one_by_one_or_by_their_label(labelled: hs.Store) -> None:
    assert chosen_heads_of(labelled, parsed()) is None
    assert chosen_heads_of(labelled, parsed("--head", "L1.H1", "--head", "L0.H2")) == [(0, 2), (1, 1)]
    assert chosen_heads_of(labelled, parsed("--label", "places")) == [(0, 0), (0, 2), (1, 0)]
    assert chosen_heads_of(labelled, parsed("--label", "places", "--run", "hand")) == [(0, 0), (0, 2), (1, 0)]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--head", "L0.H0", "--label", "places"), "--head and --label both choose heads; give one of them"),
        (("--run", "hand"), "--run hand: says which labels --label is about; give --label too"),
        (("--head", "L9.H0"), "--head L9.H0: there is no such head"),
        (("--head", "22,13"), "--head 22,13: there is no such head"),
    ],
)
def test_contradicting_flags_are_refused(labelled: hs.Store, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(HeadspanError, match=why):
        chosen_heads_of(labelled, parsed(*words))


def test_a_label_is_found_in_a_store_that_may_only_be_read(labelled: hs.Store, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(labelled.path, tmp_path / "moved.zarr"))
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*")}
    assert heads_of(hs.open(moved), "colours") == [(0, 1)]
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*")} == before
