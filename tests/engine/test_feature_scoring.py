"""Scores of a dictionary over the pairs of a store, beside what all codes at once give."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

import headspan as hs
from headspan.cli.main import main
from headspan.errors import SettingsError, percent
from headspan.features.learners.kinds import LEARNERS, NON_NEGATIVE
from headspan.features.learners.learner import IMAGE, TEXT, Learner
from headspan.features.learners.make import make_learner
from headspan.features.pairs.opening import open_pairs
from headspan.features.pairs.pairs import Pairs
from headspan.features.saved import read_scores
from headspan.features.scores.encoder import Encoder
from headspan.features.scores.judge import OWN
from headspan.features.scores.over_pairs import score_pairs
from headspan.features.scores.result import CLASS_NAMES, FeatureScores
from headspan.tasks.task import Task
from tests.conftest import encoded_image, write_tar

IMAGES, FEATURES = 57, 24


def make_store(folder: Path, images: Sequence[int]) -> hs.Store:
    members: list[tuple[str, bytes]] = []
    for number in images:
        members.append((f"{number:03d}.jpg", encoded_image(number, 16, 16)))
        members.append((f"{number:03d}.txt", f"picture {number % 20} of a tree".encode()))
        members.append((f"{number:03d}.json", json.dumps({"captions": [f"number {number}"]}).encode()))
    hs.precompute(str(write_tar(folder / "s.tar", members)), folder / "s.zarr", model="reference", unit_images=64)
    return hs.open(folder / "s.zarr")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> hs.Store:
    return make_store(tmp_path_factory.mktemp("scored"), range(IMAGES))


@pytest.fixture(scope="module")
def pairs(store: hs.Store) -> Pairs:
    return open_pairs(store)


def learner_of(pairs: Pairs, kind: str = "topk") -> Learner:
    torch.manual_seed(0)
    learner = make_learner(kind, pairs.space.width, features=FEATURES)
    (block,) = pairs.blocks(1000)
    images, texts = torch.from_numpy(block.images), None if block.texts is None else torch.from_numpy(block.texts)
    learner.start(images, texts)
    # One step in training mode, which sets thresholds.
    learner.loss(images, texts)
    return learner


@pytest.fixture(scope="module")
def learner(pairs: Pairs) -> Learner:
    return learner_of(pairs)


def test_scores_over_small_blocks_equal_those_of_all_codes_at_once(pairs: Pairs, learner: Learner) -> None:
    found = score_pairs(pairs, learner, run="small", block=7)
    (block,) = pairs.blocks(1000, seed=0)
    assert block.texts is not None
    with torch.inference_mode():
        codes = [
            learner.eval().encode(torch.from_numpy(vectors), side)
            for side, vectors in ((IMAGE, block.images), (TEXT, block.texts))
        ]
        decoded = [learner.decode(each, side).numpy() for side, each in enumerate(codes)]
    learner.train()
    z, w = (each.numpy().astype(np.float64) for each in codes)
    either = (z > 0) | (w > 0)
    ratio = np.divide(z, z + w, out=np.zeros_like(z), where=either)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.mds, ratio.sum(axis=0) / either.sum(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found.active, either.sum(axis=0))
    np.testing.assert_allclose(found.image_mean, z.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.text_square, (w**2).mean(axis=0), rtol=1e-5)
    # Half of the stream is the shift of the null, since it is short.
    other = np.roll(w, IMAGES // 2, axis=0)
    either = (z > 0) | (other > 0)
    ratio = np.divide(z, z + other, out=np.zeros_like(z), where=either)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.shuffled_mds, ratio.sum(axis=0) / either.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.shuffled_energy, found.energy, rtol=1e-9)
    for side, vectors, out in zip(("image", "text"), (block.images, block.texts), decoded, strict=True):
        fvu = ((vectors - out) ** 2).sum() / ((vectors - vectors.mean(axis=0)) ** 2).sum()
        assert found.quality[f"{side}_fvu"] == pytest.approx(fvu, rel=1e-4)
    assert found.quality["image_l0"] == (z > 0).sum() / IMAGES
    assert found.quality["dead"] == (found.active == 0).mean()
    for feature in range(FEATURES):
        order = np.lexsort((block.image, -z[:, feature].astype(np.float32)))[: int((z[:, feature] > 0).sum())]
        assert found.top_images[feature, : len(order)].tolist() == block.image[order][:50].tolist()
        assert (found.top_images[feature, len(order) :] == -1).all()
        five = block.images[order[:5]]
        if len(five) == 5:
            cosines = (five @ five.T)[np.triu_indices(5, 1)]
            assert found.similarity[feature, 0] == pytest.approx(cosines.mean(), abs=1e-5)
    assert np.isfinite(found.similarity[:, 0]).any()
    assert found.pairs == IMAGES
    assert (found.learner, found.judge) == ("topk", OWN)
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, rtol=1e-5)


def test_the_size_of_blocks_changes_no_score(pairs: Pairs, learner: Learner) -> None:
    one, many = (score_pairs(pairs, learner, run="x", block=size) for size in (1000, 5))
    for each in fields(FeatureScores):
        mine, theirs = getattr(one, each.name), getattr(many, each.name)
        if each.name in ("top_captions", "top_caption_numbers"):
            # Captions of words that the model does not know have one vector, and rounding decides their order.
            assert ((mine >= 0) == (theirs >= 0)).all()
        elif isinstance(mine, np.ndarray):
            # Each block's part of weighted sums is rounded to float32.
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=each.name)
        elif each.name == "quality":
            assert mine == pytest.approx(theirs, rel=1e-5, nan_ok=True)
        else:
            assert mine == theirs, each.name


def test_top_captions_are_captions_of_the_images_that_they_name(
    store: hs.Store, pairs: Pairs, learner: Learner
) -> None:
    found = score_pairs(pairs, learner, run="x")
    assert found.top_caption_numbers is not None
    there = found.top_captions >= 0
    np.testing.assert_array_equal(there, found.top_caption_numbers >= 0)
    texts = pairs.caption_texts(0, found.top_caption_numbers[there])
    keys = store.samples(found.top_captions[there], ["key"])["key"].to_pylist()
    for text, key in zip(texts, keys, strict=True):
        assert text in (f"picture {int(key) % 20} of a tree", f"number {int(key)}")
    for numbers in found.top_caption_numbers:
        assert len(set(numbers[numbers >= 0].tolist())) == (numbers >= 0).sum()
    assert found.caption_similarity is not None
    assert np.isfinite(found.caption_similarity[:, 0]).any()


@pytest.mark.parametrize("kind", [kind for kind in LEARNERS if kind != NON_NEGATIVE])
def test_decoding_active_features_alone_equals_the_learners_decoder(pairs: Pairs, kind: str) -> None:
    learner = learner_of(pairs, kind).eval()
    (block,) = pairs.blocks(1000)
    encoder = Encoder(learner, FEATURES)
    codes = encoder.codes(block.images, IMAGE)
    with torch.inference_mode():
        dense = learner.encode(torch.from_numpy(block.images), IMAGE)
        slow = learner.decode(dense, IMAGE).numpy()
    np.testing.assert_array_equal(codes.toarray(), dense.numpy())
    assert encoder.linear
    fast = encoder.decoded(codes, IMAGE)
    encoder.forget_linear()
    chunked = encoder.decoded(codes, IMAGE)
    assert fast is not None
    assert chunked is not None
    np.testing.assert_allclose(fast, slow, atol=1e-5)
    np.testing.assert_allclose(chunked, slow, atol=1e-6)


def test_learners_without_a_decoder_are_scored_without_reconstruction(pairs: Pairs) -> None:
    found = score_pairs(pairs, learner_of(pairs, NON_NEGATIVE), run="x")
    assert "image_r2" not in found.quality
    assert found.quality["image_l0"] > 0
    # Directions are means of vectors weighted by codes.
    (block,) = pairs.blocks(1000, seed=0)
    assert block.texts is not None
    with torch.inference_mode():
        learner = learner_of(pairs, NON_NEGATIVE).eval()
        total = learner.encode(torch.from_numpy(block.images), IMAGE).numpy().T @ block.images
        total += learner.encode(torch.from_numpy(block.texts), TEXT).numpy().T @ block.texts
    total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-30)
    np.testing.assert_allclose(found.directions, total, atol=1e-4)


def test_a_judge_of_other_vectors_judges_by_them(pairs: Pairs, learner: Learner, store: hs.Store) -> None:
    # An encoder to which all images are alike.
    alike = np.tile(np.array([[3.0, 4.0, 0.0]], np.float32), (IMAGES, 1))
    found = score_pairs(pairs, learner, run="x", judge=alike)
    known = np.isfinite(found.monosemanticity)
    assert known.any()
    np.testing.assert_allclose(found.monosemanticity[known], 1, atol=1e-5)
    assert np.isnan(found.cross_monosemanticity).all()
    assert found.caption_similarity is None
    assert found.judge == "an array"
    by_store, by_itself = score_pairs(pairs, learner, run="x", judge=store), score_pairs(pairs, learner, run="x")
    assert by_store.judge == str(store.path)
    for name in ("monosemanticity", "cross_monosemanticity", "similarity", "caption_similarity"):
        np.testing.assert_allclose(getattr(by_store, name), getattr(by_itself, name), atol=1e-5)


def test_without_texts_features_have_no_modality(store: hs.Store) -> None:
    layer = store.layers[-1]
    for space, heads in (("embedding", None), ("heads", [(layer, 0), (layer, 1)])):
        alone = open_pairs(store, space, heads=heads, captions=False)
        found = score_pairs(alone, learner_of(alone), run="x", block=10)
        assert np.isnan(found.mds).all()
        assert np.isnan(found.energy_interval).all()
        assert set(found.class_by_spread.tolist()) | set(found.class_by_interval.tolist()) == {-1}
        assert np.isfinite(found.monosemanticity).any()
        assert (found.top_captions == -1).all()
        assert "text_l0" not in found.quality
        assert found.space == alone.space


def test_pairs_that_cannot_be_scored_are_refused_in_a_sentence(
    pairs: Pairs, learner: Learner, store: hs.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"^scores are of one store, but 2 were given; score them one by one$"):
        score_pairs(open_pairs([store, store]), learner, run="x")
    with pytest.raises(SettingsError, match=r"^scores need at least 2 pairs, but there is 1 pair; choose more images$"):
        score_pairs(open_pairs(store, images=[3]), learner, run="x")
    wider = make_learner("topk", pairs.space.width + 1, features=FEATURES)
    with pytest.raises(
        SettingsError, match=r"^the dictionary is of vectors of \d+ numbers, but the embedding, \d+ num"
    ):
        score_pairs(pairs, wider, run="x")
    with pytest.raises(SettingsError, match=r"^the judge has the shape \[3, 2\], but .* has 57 images; give an array"):
        score_pairs(pairs, learner, run="x", judge=np.ones((3, 2), np.float32))
    other, keys = hs.open(store.path), store.samples(None, ["key"])
    monkeypatch.setattr(other, "samples", lambda images, columns: keys.take(images[::-1]))
    with pytest.raises(SettingsError, match=r"^the judge .* \(57 images\) holds other images than .*; precompute it"):
        score_pairs(pairs, learner, run="x", judge=other)


@pytest.fixture(scope="module")
def trained(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "small one"
    hs.features.train(pairs, folder, "topk", features=FEATURES, steps=2, batch=32, device="cpu")
    return folder


def test_a_dictionary_is_scored_from_its_folder_and_saved_where_a_run_is_named(
    store: hs.Store, pairs: Pairs, trained: Path
) -> None:
    found = hs.features.score(store.path, trained, device="cpu")
    assert (found.run, found.dictionary, found.pairs) == ("small-one", str(trained), IMAGES)
    assert "features" not in {each.kind for each in hs.runs(store)}
    directly = score_pairs(pairs, hs.features.open_dictionary(trained).learner, run="x")
    np.testing.assert_array_equal(found.mds, directly.mds)
    figures = set(found.quality) - set(directly.quality)
    assert {"dense_text_to_image_r1", "codes_image_to_text_r5", "chance_r1"} <= figures
    saved = hs.features.score(pairs, trained, run="mine", device="cpu")
    read = read_scores(store, "mine")
    np.testing.assert_array_equal(read.mds_interval, saved.mds_interval)
    assert read.quality == saved.quality
    assert (read.judge, read.seed, read.dictionary_sha256) == (OWN, 0, saved.dictionary_sha256)
    assert hs.features.score(store, trained, captions=False, device="cpu").quality["image_l0"] > 0


def test_tasks_compare_zero_shot_accuracy_with_codes_and_with_embeddings(
    store: hs.Store, pairs: Pairs, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task("ten", "accuracy", classes=tuple(f"picture {number}" for number in range(3)), templates=("{c}",))
    truths = np.arange(IMAGES) % 4 - 1
    monkeypatch.setattr("headspan.tasks.classification.class_truths", lambda *given, **named: truths)
    figures = hs.features.score(pairs, trained, tasks=[task], device="cpu").quality
    dictionary = hs.features.open_dictionary(trained)
    images, texts = pairs_of(store), hs.text_vectors(store, list(task.classes))
    codes = dictionary.encode(images), dictionary.encode(texts, TEXT)
    known = truths >= 0
    for name, (a, b) in (("dense", (images, texts)), ("codes", codes)):
        lengths = np.linalg.norm(b, axis=1)
        named = (a @ b.T / np.where(lengths > 0, lengths, np.inf)).argmax(axis=1)
        assert figures[f"{name}_accuracy_ten"] == pytest.approx((named == truths)[known].mean())
    assert figures["chance_accuracy_ten"] == np.bincount(truths[known]).max() / known.sum()
    with pytest.raises(SettingsError, match=r"^task seek: its metric is retrieval, but codes are scored by zero-shot"):
        hs.features.score(pairs, trained, tasks=[Task("seek", "retrieval")], device="cpu")


def pairs_of(store: hs.Store) -> np.ndarray:
    return np.asarray(store.embedding / np.linalg.norm(store.embedding, axis=1, keepdims=True))


def test_the_command_prints_classes_nulls_quality_and_saves_the_run(
    store: hs.Store, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["features", "score", str(store.path), "--dictionary", str(trained), "--device", "cpu"]
    assert main([*command, "--run", "printed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = read_scores(store, "printed")
    assert lines[0] == f"24 features of {scores.space}, learned by topk, over 57 pairs"
    for number, name in CLASS_NAMES.items():
        (row,) = (line.split() for line in lines if line.startswith(f"{name}  ") and line.count("%") == 2)
        by_interval, by_spread = ((each == number).sum() for each in (scores.class_by_interval, scores.class_by_spread))
        shares = percent(by_interval / 24), percent(by_spread / 24)
        assert " ".join(row) == f"{name} {by_interval} {shares[0]} {by_spread} {shares[1]}"
    bins = [line.split() for line in lines if line[:1].isdigit() and " to " in line]
    enough = scores.mds[scores.active >= 20]
    assert [int(row[3]) for row in bins] == np.histogram(enough, 10, (0, 1))[0].tolist()
    assert any(line.startswith("both sides active in ") for line in lines)
    assert any(line.split()[:1] == ["images"] and f"{scores.quality['image_r2']:.3f}" in line for line in lines)
    assert any(line.startswith("text to image R@1 ") for line in lines)
    assert lines[-1] == f"saved as features/printed in {store.path}"
    assert main([*command, "--csv", "-", "--words", "picture"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("feature,class,")
    assert "saved" not in shown.out + shown.err
    assert main([*command, "--images-only", "--run", "alone"]) == 0
    out = capsys.readouterr().out
    assert "MDS" not in out
    assert "images" in out
    assert main([*command, "--run", "printed", "--seed", "1"]) == 2
    assert "features run 'printed' was made differently (seed 0, now 1)" in capsys.readouterr().err
