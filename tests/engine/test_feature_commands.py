"""Commands on features, beside independent computations: comparing, splicing, patches, and a use that is saved."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.features import open_dictionary, open_pairs, read_scores, read_use, train
from headspan.features.spliced import splice_images
from headspan.features.uses.edit_result import EditedImage

SENTENCES = ("a red thing", "two things", "a dog on grass", "a line", "blue water")


def test_dictionaries_are_compared_with_each_feature_and_its_match(
    captioned_store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = open_pairs(captioned_store, captions=False)
    for seed in (0, 1):
        train(pairs, tmp_path / f"{seed}", "topk", features=11, k=3, steps=2, batch=7, seed=seed, device="cpu")
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert main(["features", "compare", *folders, "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    one, other = (open_dictionary(each).learner.directions().numpy() for each in folders)  # type: ignore[union-attr]
    cosines = one @ other.T
    # Each feature's match is another feature, and no exchange of two matches has a larger sum.
    found = np.array([float(row["cosine"]) for row in rows if row["dictionary"] == folders[0]])
    match = np.abs(cosines - found[:, None]).argmin(axis=1)
    assert sorted(match.tolist()) == list(range(11))
    for a in range(11):
        for b in range(a):
            exchanged = cosines[a, match[b]] + cosines[b, match[a]]
            assert exchanged <= cosines[a, match[a]] + cosines[b, match[b]] + 1e-6
    assert main(["features", "compare", *folders]) == 0
    assert f"mean matched cosine {found.mean():.3f}" in capsys.readouterr().out
    assert main(["features", "compare", folders[0]]) == 2
    assert "stability compares at least 2 dictionaries, but 1 was given; name two" in capsys.readouterr().err


def test_images_are_spliced_from_all_blocks_and_chance_has_fewer_texts(
    captioned_store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = splice_images(captioned_store, SENTENCES, penalty=0.01)
    unit = captioned_store.embedding / np.linalg.norm(captioned_store.embedding, axis=1, keepdims=True)
    mean = unit.mean(axis=0)
    centred = unit - mean
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    texts = hs.text_vectors(captioned_store, SENTENCES)
    texts = texts - texts.mean(axis=0)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    # Coordinate descent on the published objective, image by image.
    weights = np.zeros((len(unit), len(texts)))
    gram, along = texts @ texts.T, centred @ texts.T
    for _ in range(2000):
        for each in range(len(texts)):
            rest = along[:, each] - weights @ gram[each] + weights[:, each] * gram[each, each]
            weights[:, each] = np.maximum(0, (rest - 0.005) / gram[each, each])
    np.testing.assert_allclose(found.weight, weights.mean(axis=0), atol=2e-3)
    assert found.images == len(unit)
    assert found.mean_cosine == pytest.approx(float((unit @ (mean / np.linalg.norm(mean))).mean()), abs=1e-5)
    pool = tmp_path / "pool.txt"
    pool.write_text("\n".join(SENTENCES))
    assert main(["features", "splice", str(captioned_store.path), "--texts", str(pool), "--most", "9"]) == 0
    said = capsys.readouterr().out
    assert "9 images, " in said
    assert "the pool, rotated" in said
    assert main(["features", "splice", str(captioned_store.path), "--penalty", "-1"]) == 2
    assert "--penalty -1 is out of range; give one above 0" in capsys.readouterr().err


def test_features_of_patches_are_trained_and_scored_over_the_patches_of_all_images(
    captioned_store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hs.open(shutil.copytree(captioned_store.path, tmp_path / "run.zarr"))
    layer, out = store.layers[-1], str(tmp_path / "patches")
    train = ["--space", "patches", "--head", f"L{layer}.H1", "--set", "features=13", "--set", "k=3", "--steps", "4"]
    assert main(["features", "train", str(store.path), *train, "--batch", "32", "--out", out, "--device", "cpu"]) == 0
    assert f"13 features of patches in the coordinates of L{layer}.H1" in capsys.readouterr().out
    assert main(["features", "score", str(store.path), "--dictionary", out]) == 0
    found = read_scores(store)
    dictionary = open_dictionary(out)
    vectors = [
        store.patch_coordinates(image, layer)[store.prefix_tokens :, 1] / (store.norm[image, 1] * store.norm[image, 2])
        for image in range(store.images)
    ]
    assert found.pairs == store.images * (store.tokens - store.prefix_tokens) == sum(map(len, vectors))
    own = np.concatenate(vectors).astype(np.float32) * np.float32(dictionary.space.scale)
    active = (dictionary.encode(own) > 0).sum(axis=0)
    # A code near zero may be on either side of it.
    assert np.abs(found.image_active - active).max() <= 2
    assert np.isnan(found.mds).all()
    assert main(["features", "train", str(store.path), "--space", "patches", "--out", out]) == 2
    assert "'patches' needs heads, or layers for all heads of them" in capsys.readouterr().err


def test_an_edit_on_the_command_line_is_saved_and_shown_again(
    captioned_store: hs.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = hs.open(shutil.copytree(captioned_store.path, tmp_path / "run.zarr")), tmp_path / "d"
    pairs = open_pairs(store, captions=False)
    train(pairs, out, "topk", features=11, k=3, steps=2, batch=7, seed=0, device="cpu")
    assert main(["features", "score", str(store.path), "--dictionary", str(out), "--images-only"]) == 0
    command = ["features", "use", "edit", str(store.path), "--run", "swap"]
    what = ["--image", "0", "--donor", "3", "--take", "undecided", "--draws", "1"]
    capsys.readouterr()
    assert main([*command, *what]) == 0
    printed, said = capsys.readouterr()
    assert "saved as uses/swap" in said
    assert main(command) == 0
    assert capsys.readouterr().out == printed
    assert main([*command, *what, "--count", "3"]) == 2
    assert (
        "'swap' already exists with other content; choose another --run, or give --overwrite" in capsys.readouterr().err
    )
    assert main([*command, *what, "--count", "3", "--overwrite"]) == 0
    found = read_use(hs.open(store.path))
    assert isinstance(found, EditedImage)
    assert (len(found.images), found.scores_run, found.older) == (3, "d", None)
