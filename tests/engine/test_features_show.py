"""The command `features show`: the list, the page of a feature, new names, exports, pictures, and its errors."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import headspan as hs
from headspan.cli.main import main
from headspan.features.saved import read_scores, save_scores
from headspan.features.scores.result import FeatureScores
from tests.engine.hand_made_features import hand_made_scores


@pytest.fixture(scope="module")
def scored(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FeatureScores]:
    """A copy of the toy store with 17 hand-made features."""
    path = Path(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("shown") / "shown.zarr"))
    store = hs.open(path)
    directions = np.random.default_rng(1).normal(size=(17, store.joint))
    return path, save_scores(store, hand_made_scores(directions, store.images))


def _shown(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    assert main(["features", "show", *map(str, words)]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_list_has_the_features_of_a_class_in_the_order_of_a_number(
    scored: tuple[Path, FeatureScores], capsys: pytest.CaptureFixture[str]
) -> None:
    path, scores = scored
    lines = _shown(capsys, path, "--class", "image-dominant", "--sort", "mds", "--ascending", "--count", 3)
    assert lines[0] == f"hand: 17 features of topk over {scores.pairs} pairs"
    assert lines[1] == "by intervals: 4 image-dominant, 4 cross-modal, 5 text-dominant, 4 undecided"
    listed = [line.split() for line in lines if line[:1].isdigit()]
    wanted = sorted(range(2, 17, 4), key=lambda feature: scores.mds[feature])[:3]
    assert [int(row[0]) for row in listed] == wanted
    assert [row[2] for row in listed] == [f"{scores.mds[feature]:.3f}" for feature in wanted]
    assert _shown(capsys, path, "--class", "undecided")[-1] == "no feature is of that class and active in so many pairs"


def test_the_page_of_a_feature_has_its_scores_images_and_captions(
    scored: tuple[Path, FeatureScores], capsys: pytest.CaptureFixture[str]
) -> None:
    path, scores = scored
    lines = _shown(capsys, path, "--feature", 6, "--feature", 3)
    assert lines[0] == "feature 6 of hand: image-dominant"
    low, high = scores.mds_interval[6]
    assert lines[1] == (
        f"  MDS {scores.mds[6]:.3f} (95 % {low:.3f} to {high:.3f}), with captions shuffled {scores.shuffled_mds[6]:.3f}"
    )
    keys = hs.open(path).samples()["key"].to_pylist()
    first = lines.index("  top images:") + 1
    assert lines[first].split()[:2] == [f"{scores.top_image_codes[6, 0]:.4g}", keys[scores.top_images[6, 0]]]
    dead = lines[lines.index("feature 3 of hand: undecided") :]
    assert dead[1] == "  MDS - (95 % - to -), with captions shuffled -"
    assert "  no image activates it" in dead


def test_exports_have_every_number_and_a_picture_has_a_row_for_each_feature(
    scored: tuple[Path, FeatureScores], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, scores = scored
    picture, parquet = tmp_path / "strips.png", tmp_path / "features.parquet"
    lines = _shown(
        capsys, path, "--count", 0, "--least-active", 0, "--csv", "-", "--parquet", parquet, "--out", picture
    )
    rows = list(csv.DictReader(lines))
    assert len(rows) == pq.read_table(parquet).num_rows == 17
    of = {int(row["feature"]): row for row in rows}
    assert float(of[2]["mds"]) == scores.mds[2]
    assert of[3]["mds"] == ""
    with Image.open(picture) as shown:
        assert shown.height > 17 * 160
    (two,) = json.loads("\n".join(_shown(capsys, path, "--feature", 2, "--json", "-")))
    assert two["class"] == "image-dominant"
    assert two["similarity_10"] == scores.similarity[2, 1]


def test_texts_name_the_features_and_the_names_stay(
    scored: tuple[Path, FeatureScores], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = scored
    pool = tmp_path / "pets.txt"
    pool.write_text("a cat\na dog\na parrot\n")
    assert main(["features", "show", str(path), "--texts", str(pool), "--names", "2", "--sort", "name"]) == 0
    printed = capsys.readouterr()
    assert printed.err.endswith("names saved in features/hand\n")
    scores = read_scores(path)
    assert all(set(names) <= {"a cat", "a dog", "a parrot"} for names in scores.names)
    listed = [line.split() for line in printed.out.splitlines() if line[:1].isdigit()]
    assert [int(row[0]) for row in listed[:1]] == [
        max((each for each in range(17) if each % 4 != 3), key=lambda each: scores.name_cosines[each, 0])  # type: ignore[index]
    ]
    again = _shown(capsys, path, "--feature", 1)
    assert f"    {scores.name_cosines[1, 0]:.3f}  {scores.names[1][0]}" in again  # type: ignore[index]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--feature", "17"], "feature 17: hand has features 0 to 16; name one of them"),
        (["--count", "-1"], "--count -1 is too small; give at least 0"),
        (["--coherence", "0.3"], "--names, --coherence and --overwrite are about new names; give --texts with a pool"),
        (["--run", "other"], "holds no features run 'other' (has hand); run headspan features score --run other"),
        (["--class", "undecided", "--out", "x.png"], "--out: no feature is listed, so there is no picture to write"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    scored: tuple[Path, FeatureScores], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", "show", str(scored[0]), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_store_without_scores_says_which_command_makes_them(
    toy_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["features", "show", str(toy_copy)]) == 2
    assert "has no features run; run headspan features score" in capsys.readouterr().err
