"""Selections of images, and what their rows give, against dense float64 computations over the same images."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, StoreError
from headspan.events import Progress
from headspan.spans.saved import read_spans
from headspan.spans.stability import sampled_heads
from headspan.store import selected_moments
from headspan.store.mapped import MappedRows, UnmappableError
from headspan.store.moments_file import MergedMoments
from headspan.store.selection import Selection, chosen_images
from tests import tolerances
from tests.conftest import BROKEN_ROWS, ToyRun, encoded_image, relative_files, write_tar
from tests.oracle import textspan as oracle_textspan
from tests.tolerances import relative_error

TEXTS = [f"a {what} in {where}" for what in ("dog", "red car", "tree", "5 cups") for where in ("rain", "Rome", "a box")]
CAPTIONS = (
    "A dog, and a red car.",
    "dogma",
    "two DOGS; one Dog",
    "hot-dog stand",
    "dog_food",
    "Ένας ΣΚΎΛΟΣ στο αυτοκίνητο",
    "σκύλος",
    "c++ code (1.5)",
    "red\ncar",
    "1x5 codes",
    None,
)
CLASSES = (3, None, 7, 3, 3, None, -1, 7, 7, 3, 3)


@pytest.fixture(scope="module")
def captioned(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    """A store of eleven images in units of four; the fifth image is broken, and two have one key in two shards."""
    folder = tmp_path_factory.mktemp("captioned")
    shards = []
    for number, places in enumerate((range(7), range(7, 11))):
        members = []
        for place in places:
            key = "same" if place in (2, 8) else f"k{place:02d}"
            data = encoded_image(place)
            members.append((f"{key}.jpg", data[:50] if place == 4 else data))
            if CAPTIONS[place] is not None:
                members.append((f"{key}.txt", str(CAPTIONS[place]).encode()))
            if CLASSES[place] is not None:
                members.append((f"{key}.cls", str(CLASSES[place]).encode()))
        shards.append(str(write_tar(folder / f"{number}.tar", members)))
    hs.precompute(out=folder / "s.zarr", **toy_run.settings(shards=shards, unit_images=4, emit=("heads",)))
    return hs.open(folder / "s.zarr")


def has_word(caption: str | None, word: str) -> bool:
    """Whether a caption has a word, by Python's own regular expressions."""
    return caption is not None and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption, re.IGNORECASE) is not None


@pytest.mark.parametrize("word", ["dog", "DOGS", "red", "car", "σκύλος", "c++", "1.5", "stand"])
def test_a_word_matches_as_a_whole_in_any_case_and_script(captioned: hs.Store, word: str) -> None:
    wanted = [place for place in range(11) if place != 4 and has_word(CAPTIONS[place], word)]
    found = captioned.select(words=word)
    assert wanted
    assert found.rows.tolist() == wanted
    assert captioned.rows[found.images(captioned)].tolist() == wanted
    assert found.description == f"{len(wanted)} image{'s' * (len(wanted) > 1)} whose caption has the word {word}"


def test_all_words_or_any_of_them_may_be_asked_for_and_phrases_may_have_line_ends(captioned: hs.Store) -> None:
    both, either = captioned.select(words=["dog", "car"]), captioned.select(words=["dog", "car"], any_word=True)
    assert both.rows.tolist() == [0]
    assert either.rows.tolist() == [0, 2, 3, 8]
    assert captioned.select(words="red  car").rows.tolist() == [0, 8]
    assert (both.words, either.words) == (
        "whose caption has the words dog and car",
        "whose caption has the words dog or car",
    )


def test_classes_and_keys_are_selected_together_with_words(captioned: hs.Store, tmp_path: Path) -> None:
    assert captioned.select(classes=7).rows.tolist() == [2, 7, 8]
    assert captioned.select(classes=[3, -1]).rows.tolist() == [0, 3, 6, 9, 10]
    # All images of a key are selected.
    assert captioned.select(keys=["same", "k00", "same"]).rows.tolist() == [0, 2, 8]
    path = tmp_path / "some.txt"
    path.write_bytes("\ufeffsame\r\nk00\r\n\r\n".encode())
    found = captioned.select(keys=path, words=["dog"], classes=[7, 3])
    assert found.rows.tolist() == [0, 2]
    assert found.description == ("2 images whose caption has the word dog, of classes 7 or 3, with a key in some.txt")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"words": "zebra"}, "no caption has the word zebra; choose other words"),
        ({"words": ["dog", "zebra", "lion"]}, "no caption has the words zebra, lion; choose other words"),
        ({"words": ["zebra", "lion"], "any_word": True}, "no caption has the words zebra, lion"),
        ({"words": ["c++", "dog"]}, r"no image has all that was asked for \(c\+\+ in 1 image, dog in 3 images\)"),
        ({"words": []}, "the list of words is empty"),
        ({"words": " "}, "has an empty word"),
        ({"classes": 5}, "no image has class 5"),
        ({"classes": [3, 5, 8]}, "no image has class 5, 8"),
        ({"classes": []}, "the list of classes is empty"),
        ({"keys": ["k00", "no", "nor", "none", "ever"]}, "no image for 4 of 5 keys \\(first: 'no', 'nor', 'none'\\)"),
        ({"keys": []}, "the list of keys is empty"),
        ({"keys": "missing.txt"}, "missing.txt: cannot be read"),
        ({"keys": ["k04"]}, r"no image has all that was asked for \(0 images by key\)"),
        ({}, "no images are chosen; give keys, words or classes"),
    ],
)
def test_what_selects_nothing_is_refused_with_the_reason(
    captioned: hs.Store, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        captioned.select(**asked)


def test_words_and_classes_are_refused_where_no_image_has_any(toy_store: hs.Store, toy_run: ToyRun) -> None:
    with pytest.raises(SettingsError, match=r"no image has a class \(.cls member\), so classes cannot choose images"):
        toy_store.select(classes=1)


def test_keys_of_images_that_failed_and_words_without_a_match_are_told(captioned: hs.Store) -> None:
    notes: list[str] = []

    def listen(event: Progress) -> None:
        notes.append(event.note)

    assert captioned.select(keys=["k04", "k05"], on_progress=listen).rows.tolist() == [5]
    captioned.select(words=["dog", "zebra"], any_word=True, on_progress=listen)
    assert notes == ["left out 1 image named by key that could not be used", "no caption has the word zebra"]


def test_masks_of_numpy_pyarrow_and_pandas_select_alike(captioned: hs.Store) -> None:
    samples = captioned.samples()
    wanted = [place for place, caption in enumerate(samples["caption"].to_pylist()) if caption and "dog" in caption]
    column = pc.match_substring(samples["caption"], "dog")
    # Images without a caption have no value.
    assert column.null_count == 1
    masks = [
        column,
        column.combine_chunks(),
        samples["caption"].to_pandas().astype("string").str.contains("dog"),
        pd.Series(column.to_pylist()),
        np.array(pc.fill_null(column, False)),
        pc.fill_null(column, False).to_pylist(),
    ]
    indices = (wanted, tuple(wanted), np.array(wanted[::-1]), torch.tensor(wanted), pd.Series(wanted), pa.array(wanted))
    for mask in (*masks, *indices):
        assert chosen_images(captioned, mask).tolist() == wanted
    for wrong in ([0, 99], [-1], [0.5], "dog", [[1]], [True, False], [[1], [2, 3]], pd.Series(["dog"])):
        with pytest.raises(SettingsError):
            chosen_images(captioned, wrong)


def test_a_selection_is_refused_by_a_store_that_does_not_show_its_images(captioned: hs.Store) -> None:
    assert captioned.select(words="dog").images(hs.open(captioned.path, include_failed=True)).tolist() == [0, 2, 3]
    for rows in ([0, 4], [11]):
        with pytest.raises(SettingsError, match="does not show all of the"):
            Selection(np.array(rows), "of another store").images(captioned)


def dense_moments(store: hs.Store, images: np.ndarray) -> MergedMoments:
    """Moments of some images in float64, from the coordinates' definition."""
    mean, s, length = store.norm[images].astype(np.float64).T
    total, gram = [], []
    for layer in store.layers:
        for head in range(store.heads_per_layer):
            own = store.head_coordinates(layer, head)[images].astype(np.float64) / (s * length)[:, None]
            coordinates = np.column_stack([own, 1 / (s * length), mean / (s * length), 1 / length])
            total.append(coordinates.sum(axis=0))
            gram.append(np.stack([np.outer(row, row) for row in coordinates]).sum(axis=0))
    shape = (len(store.layers), store.heads_per_layer)
    return MergedMoments(
        len(images),
        np.array(total).reshape(*shape, -1),
        np.array(gram).reshape(*shape, *gram[0].shape),
    )


@pytest.mark.parametrize("mapped", [True, False])
@pytest.mark.parametrize("block", [1, 5, 4096])
def test_moments_of_a_selection_are_those_of_its_rows(
    toy_run: ToyRun, block: int, mapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected_moments, "_BLOCK_ROWS", block)
    monkeypatch.setattr(selected_moments, "_HEADS", 1)
    if not mapped:

        def refuse(*ignored: object) -> None:
            raise UnmappableError

        monkeypatch.setattr(MappedRows, "take", refuse)
    store = hs.open(toy_run.path)
    images = np.array([0, 1, 31, 32, 40, 66])
    found, wanted = store.moments(images), dense_moments(store, images)
    assert found.count == 6
    assert relative_error(found.total, wanted.total) < tolerances.FLOAT64
    assert relative_error(found.gram, wanted.gram) < tolerances.FLOAT64
    unit = store.embedding[images].astype(np.float64) / store.norm[images, 2:].astype(np.float64)
    embedding = store.embedding_moments(images)
    assert relative_error(embedding.total, unit.sum(axis=0)) < tolerances.FLOAT64
    assert relative_error(embedding.gram, unit.T @ unit) < tolerances.FLOAT64


def test_moments_of_all_images_are_those_of_the_store_within_the_rounding_to_float16(toy_store: hs.Store) -> None:
    found, wanted = toy_store.moments(range(toy_store.images)), toy_store.moments()
    assert found.count == wanted.count
    # The store's moments were added before `Σ α v` was rounded to float16, which changes each product of two numbers by
    # at most twice 2⁻¹¹ of itself, whatever its sign: so the bound is of the sums of absolute values, and twice that
    # leaves room for subnormals. The last three coordinates are not rounded.
    absolute = np.sqrt(np.einsum("lhc,lhd->lhcd", *[np.diagonal(wanted.gram, axis1=2, axis2=3)] * 2))
    assert (np.abs(found.gram - wanted.gram) <= 2 * 2 * 2.0**-11 * absolute).all()
    assert (np.abs(found.gram - wanted.gram)[..., -3:, -3:] <= tolerances.FLOAT64 * absolute[..., -3:, -3:]).all()
    assert np.abs(found.gram - wanted.gram).max() > 0
    assert wanted.embedding is not None
    assert found.embedding is not None
    assert relative_error(found.embedding.gram, wanted.embedding.gram) < tolerances.FLOAT64


def test_moments_of_disjoint_selections_add_up(toy_store: hs.Store) -> None:
    first = np.arange(toy_store.images) % 3 == 1
    both, whole = toy_store.moments(first) + toy_store.moments(~first), toy_store.moments(range(toy_store.images))
    assert both.count == whole.count
    assert relative_error(both.gram, whole.gram) < tolerances.FLOAT64
    assert relative_error(both.total, whole.total) < tolerances.FLOAT64


def test_failed_images_of_a_selection_add_nothing(toy_run: ToyRun, toy_store: hs.Store) -> None:
    every = hs.open(toy_run.path, include_failed=True)
    rows = [4, *BROKEN_ROWS, 40]
    found = every.moments(rows)
    assert found.count == 2
    wanted = toy_store.moments(np.searchsorted(toy_store.rows, [4, 40]))
    assert relative_error(found.gram, wanted.gram) < tolerances.FLOAT64
    spans = hs.textspan(every, TEXTS, 5, images=rows, draws=20)
    assert (spans.images, spans.over) == (2, "2 images chosen by index or by a mask")
    assert every.select(words="caption").rows.tolist() == toy_store.rows.tolist()
    with pytest.raises(SettingsError, match="the list of images is empty; choose at least one that could be used"):
        every.moments(list(BROKEN_ROWS))


def test_magnitudes_of_a_selection_are_those_of_its_dense_contributions(toy_store: hs.Store) -> None:
    images = np.arange(3, 60, 4)
    found = toy_store.magnitudes(covariance=True, images=images)
    unit = toy_store.embedding[images].astype(np.float64) / toy_store.norm[images, 2:]
    centred = unit - unit.mean(axis=0)
    for layer in toy_store.layers:
        for head in range(toy_store.heads_per_layer):
            contributions = toy_store.head(layer, head)[images].astype(np.float64)
            away = contributions - contributions.mean(axis=0)
            wanted = (away**2).sum() / (centred**2).sum(), (contributions**2).sum() / (unit**2).sum()
            np.testing.assert_allclose(found.of(layer, head), wanted, rtol=tolerances.SQUARES_FLOAT32)
            covariance = (away * centred).sum() / (centred**2).sum()
            assert found.covariance_share is not None
            assert abs(found.covariance_share[layer, head] - covariance) < tolerances.SQUARES_FLOAT32


def test_texts_of_a_selection_are_those_of_its_dense_contributions(toy_store: hs.Store) -> None:
    images = np.arange(1, 66, 2)
    before = relative_files(toy_store.path)
    spans = hs.textspan(toy_store, TEXTS, 5, images=images, draws=0)
    vectors = hs.text_vectors(toy_store, TEXTS)
    for layer, head in spans.heads():
        contributions = toy_store.head(layer, head)[images]
        chosen, explained, _ = oracle_textspan(contributions, vectors, 5, 80)
        assert spans.places(layer, head) == chosen.tolist()
        np.testing.assert_allclose(spans.explained[layer, head], explained, atol=1e-5)
    assert (spans.images, spans.over) == (33, "33 images chosen by index or by a mask")
    assert "over 33 images chosen by index" in repr(spans)
    # Nothing is written without a name.
    assert relative_files(toy_store.path) == before


def test_chance_and_stability_of_a_selection_come_from_its_images(toy_store: hs.Store) -> None:
    images = np.arange(5, 60, 3)
    sample = sampled_heads([toy_store], 1, selected=images)
    for head in range(toy_store.heads_per_layer):
        scale = toy_store.norm[images, 1:2] * toy_store.norm[images, 2:]
        coordinates = toy_store.head_coordinates(1, head)[images] / scale
        np.testing.assert_allclose(sample[:, head, :-3], coordinates, rtol=1e-6)
    assert len(sampled_heads([toy_store], 1, 7, selected=images)) == 7
    spans = hs.textspan(toy_store, TEXTS, 5, images=images, draws=20)
    every = hs.textspan(toy_store, TEXTS, 5, draws=20)
    assert spans.stability is not None
    assert spans.null is not None
    assert every.null is not None
    assert spans.null.explained.shape == every.null.explained.shape
    assert (spans.null.explained != every.null.explained).any()
    assert "few data: 19 images" in str(spans.too_few_images())


def test_a_saved_run_records_its_selection_and_refuses_another(toy_copy: Path) -> None:
    store, images = hs.open(toy_copy), np.arange(20, 50)
    notes: list[str] = []
    given: dict[str, Any] = {"texts": TEXTS, "texts_per_head": 6, "draws": 0, "run": "some"}
    spans = hs.textspan(store, images=images, **given)
    again = hs.textspan(store, images=images[::-1], on_progress=lambda event: notes.append(event.note), **given)
    assert "textspan/some was already made with the same settings; it is unchanged" in notes
    read = read_spans(store, "some")
    for each in (again, read):
        assert each.selection is not None
        assert spans.selection is not None
        assert each.selection.rows.tolist() == spans.selection.rows.tolist() == store.rows[images].tolist()
        assert each.selection.words == spans.selection.words
        assert (each.indices == spans.indices).all()
    with pytest.raises(StoreError, match=r"made differently .*other selection of images"):
        hs.textspan(store, images=images + 1, **given)
    with pytest.raises(StoreError, match=r"made differently .*number of images 30, now 67, other selection of images"):
        hs.textspan(store, **given)
    whole = {**given, "run": "whole"}
    hs.textspan(store, **whole)
    with pytest.raises(StoreError, match="other selection of images"):
        hs.textspan(store, images=range(store.images), **whole)
    listed = {each.name: each.settings for each in hs.runs(store) if each.kind == "textspan"}
    assert listed["some"].endswith("30 images chosen by index or by a mask")
    assert listed["whole"].endswith("67 images")
    hs.textspan(store, images=images + 1, overwrite=True, **given)
    assert read_spans(store, "some").selection.rows.tolist() == store.rows[images + 1].tolist()  # type: ignore[union-attr]


def test_a_selection_of_a_read_only_store_is_described_and_changes_nothing(toy_copy: Path) -> None:
    before = relative_files(toy_copy)
    for path in (toy_copy, *toy_copy.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        store = hs.open(toy_copy)
        spans = hs.textspan(store, TEXTS, 5, images=store.select(keys=["00001", "00002", "00003"]), draws=0)
        assert len(hs.explore.beside_store(store, spans).heads) == 9
    finally:
        for path in (toy_copy, *toy_copy.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert relative_files(toy_copy) == before


def test_one_image_none_and_further_stores_are_refused_in_one_sentence(toy_store: hs.Store, toy_copy: Path) -> None:
    with pytest.raises(StoreError, match="1 image, but TEXTSPAN needs at least 2, to have a variance"):
        hs.textspan(toy_store, TEXTS, 5, images=[3])
    with pytest.raises(SettingsError, match="the list of images is empty"):
        hs.textspan(toy_store, TEXTS, 5, images=[])
    with pytest.raises(SettingsError, match="images are selected in one store, so leave out further stores"):
        hs.textspan(toy_store, TEXTS, 5, images=[3, 4], also=[hs.open(toy_copy)])
    assert np.isnan(toy_store.magnitudes(images=[3]).variance_share).all()


def test_heads_beside_the_store_are_those_of_dense_contributions(toy_store: hs.Store) -> None:
    images = np.arange(2, 40, 3)
    spans = hs.textspan(toy_store, TEXTS, 5, images=images, draws=0)
    found = hs.explore.beside_store(toy_store, spans)
    vectors = hs.text_vectors(toy_store, TEXTS)
    here, whole = toy_store.magnitudes(images=images), toy_store.magnitudes()
    differs = []
    for place, head in enumerate(found.heads):
        contributions = toy_store.head(*head).astype(np.float64)
        away = contributions[images].mean(axis=0) - contributions.mean(axis=0)
        shift = np.linalg.norm(away) / np.sqrt(contributions.var(axis=0).sum())
        np.testing.assert_allclose(found.shift[place], shift, rtol=1e-2)
        assert found.towards[place] == TEXTS[int((vectors @ away).argmax())]
        assert found.variance_share[place] == here.of(*head)[0]
        assert found.store_variance_share[place] == whole.of(*head)[0]
        differs.append(abs(here.of(*head)[0] - whole.of(*head)[0]) + shift**2 * whole.of(*head)[0])
    np.testing.assert_allclose(differs, sorted(differs, reverse=True), rtol=1e-2)
    assert sorted(found.heads) == list(spans.heads())
    assert list(found.to_frame())[:4] == ["layer", "head", "texts", "label"]
    np.testing.assert_allclose(found.to_frame()["ratio"], found.variance_share / found.store_variance_share)
    # A list of texts has no concepts.
    assert found.labels == (None,) * 9
    with pytest.raises(SettingsError, match="is over all images; describe some of them with textspan"):
        hs.explore.beside_store(toy_store, hs.textspan(toy_store, TEXTS, 5, draws=0))


def test_a_pool_with_concepts_labels_the_heads_beside_the_store(toy_store: hs.Store) -> None:
    pool = hs.Pool("annotated", tuple(TEXTS), tuple(text.split(" in ")[0] for text in TEXTS))
    spans = hs.textspan(toy_store, pool, 5, images=range(30), draws=0)
    labels, found = hs.concepts.label_heads(toy_store, spans), hs.explore.beside_store(toy_store, spans)
    assert found.labels == tuple(labels.name(*head) for head in found.heads)
    assert any(found.labels)


def test_the_command_saves_a_selection_only_under_a_name_and_labels_work_on_it(
    toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.txt"
    pool.write_text("".join(f"{text}\t{text.split(' in ')[0]}\n" for text in TEXTS))
    keys = tmp_path / "keys.txt"
    keys.write_text("".join(f"{row:05d}\n" for row in range(10, 31)))
    before = relative_files(toy_copy)
    command = ["textspan", str(toy_copy), "--texts", str(pool), "--texts-per-head", "5", "--draws", "0"]
    assert main([*command, "--keys", str(keys)]) == 0
    shown = capsys.readouterr().out
    assert "heads that differ most between these 21 images with a key in keys.txt and the whole store:" in shown
    assert "saved as" not in shown
    assert relative_files(toy_copy) == before
    assert main([*command, "--keys", str(keys), "--run", "some", "--csv", str(tmp_path / "t.csv")]) == 0
    assert f"saved as textspan/some in {toy_copy}" in capsys.readouterr().out
    table, store = pd.read_csv(tmp_path / "t.csv"), hs.open(toy_copy)
    first = table.iloc[0]
    head = int(first["layer"]), int(first["head"])
    here = store.magnitudes(images=store.select(keys=keys))
    shares = here.of(*head)[0], store.magnitudes().of(*head)[0]
    np.testing.assert_allclose(first[["variance_share", "store_variance_share"]].astype(float), shares)
    assert main(["label", str(toy_copy), "--run", "some"]) == main(["ccs", str(toy_copy), "--run", "some"]) == 0
    assert main(["report", str(toy_copy), "--run", "some", "--out", str(tmp_path / "r.html")]) == 0
    assert "are over 21 images with a key in keys.txt." in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert main([*command, "--words", "caption", "31", "--run", "some"]) == 2
    assert "1 image, but TEXTSPAN needs at least 2" in capsys.readouterr().err
    assert main([*command, "--words", "caption", "--run", "some"]) == 2
    assert "other selection of images" in capsys.readouterr().err
    assert main([*command, "--any-word"]) == 2
    assert "--any-word is given without --words" in capsys.readouterr().err


def test_a_twin_is_described_over_the_same_images(toy_run: ToyRun, toy_copy: Path, tmp_path: Path) -> None:
    twin_path = tmp_path / "random.zarr"
    hs.precompute(out=twin_path, **toy_run.settings(pretrained="random:4"))
    store, twin = hs.open(toy_copy), hs.open(twin_path)
    images = np.arange(0, 60, 2)
    found = hs.textspan(store, TEXTS, 5, images=images, draws=20, twin=twin)
    alone = hs.textspan(twin, TEXTS, 5, images=images, draws=20)
    assert found.twin is not None
    assert found.twin.images == 30
    assert (found.twin.indices == alone.indices).all()


def test_a_selection_chooses_the_images_of_a_torch_dataset(toy_store: hs.Store) -> None:
    selection = toy_store.select(keys=["00003", "00034"])
    dataset = hs.torch_dataset(toy_store, ("image", "embedding"), images=selection)
    images = selection.images(toy_store)
    assert [int(dataset[place]["image"]) for place in range(2)] == images.tolist()
    assert pa.array(images).to_pylist() == np.searchsorted(toy_store.rows, [3, 34]).tolist()


def test_a_damaged_table_of_samples_is_named(toy_copy: Path) -> None:
    shutil.copy(toy_copy / "zarr.json", toy_copy / "records" / "samples" / "00000.parquet")
    with pytest.raises(StoreError, match=r"00000\.parquet: this table is damaged"):
        hs.open(toy_copy).select(words="caption")
