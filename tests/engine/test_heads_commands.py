"""The commands `heads` and `spectra`: what they print, what they export, and what they refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.main import main
from tests.conftest import ToyRun, relative_files

WORDS = "red, a blue thing, green, two dogs, night"


@pytest.fixture
def pool(tmp_path: Path) -> str:
    """A file of texts."""
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS.split(", ")))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main([str(each) for each in arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    try:
        assert main([str(each) for each in arguments]) == 2
    except SystemExit as error:
        assert error.code == 2  # noqa: PT017
    return capsys.readouterr().err


def test_heads_for_words_are_ranked_beside_chance(toy_run: ToyRun, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "heads", toy_run.path, "--for", WORDS, "--count", 2, "--draws", 20)
    found = hs.explore.head_pursuit(hs.open(toy_run.path), WORDS.split(", "), 2, draws=20)
    assert re.split(r" {2,}", lines[0])[:5] == ["head", "explained", "by chance", "excess", "p"]
    names = [line.split()[0] for line in lines[1:10]]
    assert names == [f"L{layer}.H{head}" for layer, head in found.ranking()]
    first = found.ranking()[0]
    assert f"{100 * found.explained_by(*first):.1f} %" in lines[1]
    assert found.texts(*first)[0] in lines[1]
    # Words begin where their column's name does.
    assert lines[1][lines[0].index("words, with") :].startswith(found.texts(*first)[0])
    assert "in the span of 2 of 5 words" in lines[10]
    assert "of 9 heads above chance" in lines[12]
    variance = hs.open(toy_run.path).magnitudes().of(*first)[0]
    assert f"{100 * variance:.2f} %" in lines[1]
    assert len(run(capsys, "heads", toy_run.path, "--for", WORDS, "--draws", 0, "--top", 3)) == 6
    assert len(run(capsys, "heads", toy_run.path, "--for", WORDS, "--draws", 0, "--head", "L1.H0")) == 4


def test_words_come_from_a_file_too(toy_run: ToyRun, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = run(capsys, "heads", toy_run.path, "--for", WORDS, "--draws", 0)
    assert run(capsys, "heads", toy_run.path, "--for-file", pool, "--draws", 0) == wanted


def test_other_texts_stand_beside_the_words(toy_run: ToyRun, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "heads", toy_run.path, "--for", "red,night", "--draws", 20, "--against", pool)
    assert re.split(r" {2,}", lines[0])[5:8] == ["other texts", "p", "best"]
    assert "what 2 texts explain that are drawn from words at random" in lines[12]


def test_tables_have_all_heads_or_the_named_ones(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = relative_files(toy_run.path)
    asked = ("heads", toy_run.path, "--for", WORDS, "--draws", 0)
    run(capsys, *asked, "--top", 1, "--json", tmp_path / "heads.json", "--parquet", tmp_path / "heads.parquet")
    rows = json.loads((tmp_path / "heads.json").read_text())
    assert len(rows) == 9
    assert all(row["variance_share"] > 0 for row in rows)
    assert [row["explained"] for row in rows] == sorted((row["explained"] for row in rows), reverse=True)
    lines = run(capsys, *asked, "--head", "L2.H1", "--csv", "-")
    assert [line.split(",")[:2] for line in lines] == [["layer", "head"], ["2", "1"]]
    lines = run(capsys, "heads", toy_run.path, "--text", "night", "--csv", "-")
    assert lines[0] == "layer,head,share,mean,random"
    assert len(lines) == 10
    assert relative_files(toy_run.path) == before


def test_heads_of_a_text_have_their_shares(toy_run: ToyRun, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "heads", toy_run.path, "--text", "night", "--texts", pool, "--covariance")
    found = hs.explore.text_shares(hs.open(toy_run.path), "night", covariance=True)
    assert re.split(r" {2,}", lines[0]) == ["head", "share", "mean", "random direction", "percentile", "covariance"]
    layer, head = found.ranking()[0]
    assert lines[1].startswith(f"L{layer}.H{head}  {100 * found.of(layer, head):.2f} %")
    assert "shares need not sum to 100 %" in lines[11]
    assert "among 5 texts of the pool words" in lines[13]
    assert "sums to 100 % over all components; heads " in lines[14]


def test_spectra_are_printed_by_singular_value_or_by_variance(
    toy_run: ToyRun, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("spectra", toy_run.path, "--texts", pool, "--texts-per-direction", 2, "--head", "L1.H2")
    lines = run(capsys, *asked, "--directions", 2)
    found = hs.explore.spectra(hs.open(toy_run.path), [(1, 2)], pool, 2)
    assert lines[0].startswith("L1.H2  its directions cover ")
    assert [line.split(":")[0] for line in lines if "squared singular" in line] == ["  0", "  1"]
    assert lines[2] == f"    + {found.fidelity[0, 0, 0]:.2f}  {'; '.join(found.texts(1, 2, 0))}"
    assert lines[3].startswith("    - ")
    assert "a random direction's is" in lines[-1]
    lines = run(capsys, *asked, "--directions", 1, "--by-variance")
    assert lines[1].startswith(f"  {found.share[0].argmax()}: ")
    assert len(run(capsys, *asked, "--csv", "-")) == 17


def test_wrong_flags_are_refused_in_one_sentence(toy_run: ToyRun, capsys: pytest.CaptureFixture[str]) -> None:
    path = toy_run.path
    assert "one of the arguments --for --for-file --text is required" in refused(capsys, "heads", path)
    assert "not allowed with argument" in refused(capsys, "heads", path, "--for", "a", "--text", "b")
    assert "--for ' ,': contains no words; separate them by commas" in refused(capsys, "heads", path, "--for", " ,")
    assert "nope.txt: cannot be read" in refused(capsys, "heads", path, "--for-file", "nope.txt")
    assert "--head L9.H0: there is no such head" in refused(capsys, "heads", path, "--for", "a", "--head", "L9.H0")
    assert "--draws does not apply here; it goes with --for or --for-file" in refused(
        capsys, "heads", path, "--text", "a", "--draws", 30
    )
    assert "--covariance does not apply here; it goes with --text" in refused(
        capsys, "heads", path, "--for", "a", "--covariance"
    )
    assert "--top 0 is too small; give at least 1" in refused(capsys, "heads", path, "--for", "a", "--top", 0)
    assert "--count 0 is too small; give at least 1" in refused(capsys, "heads", path, "--for", "a", "--count", 0)
    assert "--directions 0 is too small; give at least 1" in refused(capsys, "spectra", path, "--directions", 0)
    assert "--head H1: there is no such head" in refused(capsys, "spectra", path, "--head", "H1")


def test_few_words_are_said(toy_run: ToyRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["heads", str(toy_run.path), "--for", "red,blue", "--draws", "0"]) == 0
    assert "the list has 2 words, fewer than 5: each head gets at most 2" in capsys.readouterr().err


def test_words_longer_than_the_context_are_cut_and_this_is_said(
    toy_run: ToyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second time, its vector is not taken from a cache without a word.
    for _ in range(2):
        assert main(["heads", str(toy_run.path), "--for", "red," + "a very long word " * 20, "--draws", "0"]) == 0
        said = capsys.readouterr().err
        assert "filled the model's context of 16 tokens, so the end may have been cut: a very long word a very" in said


def test_words_whose_vectors_are_stored_need_no_torch(toy_copy: Path) -> None:
    store = hs.open(toy_copy)
    hs.textspan(store, WORDS.split(", "), texts_per_head=2, run="five", draws=0)
    program = """
import sys
sys.modules.update(torch=None, open_clip=None)
import numpy as np, headspan as hs
store = hs.open(sys.argv[1])
found = hs.explore.head_pursuit(store, sys.argv[2].split(", "), 2)
shares = hs.explore.text_shares(store, np.ones(store.joint), covariance=True)
print(found.ranking()[0], shares.pool_texts)
"""
    command = [sys.executable, "-c", program, str(toy_copy), WORDS]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wanted = hs.explore.head_pursuit(store, WORDS.split(", "), 2, draws=0)
    assert said == f"{wanted.ranking()[0]} 5\n"


def test_variances_are_taken_over_the_selected_images(
    toy_run: ToyRun, pool: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = hs.open(toy_run.path)
    keys = tmp_path / "keys.txt"
    keys.write_text("\n".join(store.samples([2, 9, 30, 44, 60])["key"].to_pylist()))
    chosen = store.select(keys=keys.read_text().split())
    lines = run(capsys, "heads", toy_run.path, "--for", WORDS, "--draws", 0, "--keys", keys, "--csv", "-")
    found = hs.explore.head_pursuit(store, WORDS.split(", "), draws=0, images=chosen)
    assert [line.split(",")[2] for line in lines[1:]] == [str(found.explained_by(*head)) for head in found.ranking()]
    lines = run(capsys, "heads", toy_run.path, "--text", "night", "--keys", keys)
    assert "the text's score over 5 images: mean" in lines[10]
    asked = ("spectra", toy_run.path, "--texts", pool, "--texts-per-direction", 2, "--head", "L1.H2", "--keys", keys)
    row = run(capsys, *asked, "--csv", "-")[1].split(",")
    spectrum = hs.explore.spectra(store, [(1, 2)], pool, 2, images=chosen)
    assert float(row[5]) == spectrum.share[0, 0]


def test_a_store_that_may_only_be_read_answers_and_stays_as_it_was(
    toy_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = relative_files(toy_copy)
    for path in [toy_copy, *toy_copy.rglob("*")]:
        path.chmod(path.stat().st_mode & 0o555)
    atlas = tmp_path / "atlas.parquet"
    assert run(capsys, "heads", toy_copy, "--for", WORDS, "--draws", 0)
    assert run(capsys, "heads", toy_copy, "--text", "never seen before", "--covariance")
    assert run(capsys, "spectra", toy_copy, "--head", "L2.H1", "--directions", 1)
    assert run(capsys, "export", toy_copy, "--to", atlas, "--atlas", "--head", "L1.H2", "--no-pictures")
    assert atlas.is_file()
    assert relative_files(toy_copy) == before
