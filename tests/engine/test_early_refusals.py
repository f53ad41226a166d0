"""What can be judged before a model is loaded is refused before: numbers of flags, shards, folders and settings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from headspan.cli.main import build_parser, main
from headspan.cli.numbers import Real, Whole
from headspan.cli.sub_commands import _Later
from headspan.errors import SettingsError
from headspan.run.image_encoder import forget_models
from tests.conftest import ToyRun


def parsers_below(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its sub-commands, with their flags."""
    if isinstance(parser, _Later):
        parser.filled()
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in dict.fromkeys(action.choices.values()):
                yield from parsers_below(each)


def bounds(kind: Whole | Real) -> tuple[list[str], dict[str, str]]:
    """Values at the ends of what a flag accepts, and values beyond, each with what is wrong."""
    if isinstance(kind, Whole):
        right = [str(kind.least), str(kind.most), *([kind.word] if kind.word else [])]
        beyond = {str(kind.least - 1): "is too small", str(kind.most + 1): "is too large"}
        return right, beyond | {"1.5": "is not a whole number", "": "is not a whole number"}
    right = ["1e-09"] if kind.above else [str(kind.least)]
    beyond = {str(kind.least if kind.above else kind.least - 0.5): "is out of range", "many": "is not a number"}
    if kind.most < float("inf"):
        right.append(str(kind.most))
        beyond[str(2 * kind.most)] = "is out of range"
    return right, beyond | {"nan": "is out of range", "inf": "is out of range", "-inf": "is out of range"}


def test_every_number_of_every_command_is_refused_beyond_its_bounds() -> None:
    flags = 0
    for parser in parsers_below(build_parser()[0]):
        for action in parser._actions:
            assert action.type not in (int, float), f"{parser.prog} {action.option_strings}: use a type of cli/numbers"
            if not isinstance(action.type, Whole | Real):
                continue
            flags += 1
            flag = action.option_strings[0]
            right, wrong = bounds(action.type)
            for value in right:
                assert str(parser._get_value(action, value)) == value, (parser.prog, flag, value)
            for value, why in wrong.items():
                with pytest.raises(SettingsError) as error:
                    parser._get_value(action, value)
                assert str(error.value).startswith(f"{flag} {value or repr(value)} {why}; give "), (parser.prog, flag)
    assert flags > 100


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("features train s.zarr --out o --steps 0", "--steps 0 is too small; give at least 1"),
        ("features train s.zarr --out o --k 0", "--k 0 is too small; give at least 1"),
        ("features train s.zarr --out o --lr 0", "--lr 0 is out of range; give one above 0"),
        ("textspan s.zarr --texts-per-head -5", "--texts-per-head -5 is too small; give at least 1"),
        ("nearest s.zarr --image 0 --draws -1", "--draws -1 is too small; give at least 0"),
        ("heads s.zarr --for red --count 0", "--count 0 is too small; give at least 1"),
        ("heads s.zarr --for red --top many", "--top many is not a whole number; give one from 1"),
        (
            "segment s.zarr --image 0 --text a --opacity 1.5",
            "--opacity 1.5 is out of range; give one above 0 and up to 1",
        ),
        ("explore s.zarr --port 70000", "--port 70000 is too large; give at most 65,535"),
        (
            "precompute s.tar --out o --batch-size all",
            "--batch-size all is not a whole number; give one from 1 to 1,048,576, or auto",
        ),
    ],
)
def test_a_wrong_number_is_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"headspan: {sentence}\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("features train STORE --out FILE/x", "cannot be written (FILE is a file); choose another --out"),
        ("features train STORE --out FOLDER", "exists and is not a dictionary that headspan trained; choose another"),
        ("features train STORE --out o --images-only --epochs 5 --steps 9", "5 epochs and 9 steps: give one of both"),
        ("features train STORE --out o --images-only --k 999", "k is 999, but vectors have 24 numbers, which as many"),
        ("features train STORE --out o --images-only --features 3 --k 9", "k is 9, but the dictionary has 3 features"),
        ("features train STORE --out o --images-only --precision fp9", "precision 'fp9' is unknown; choose from fp32"),
        ("features train STORE --out o --images-only --set nothing=1", "the learner has no setting 'nothing'; it has"),
        ("heads STORE --text unknown --texts none.txt", "none.txt: cannot be read (No such file or directory); give"),
        ("nearest STORE --text ''", "--text '' is empty; give a text"),
        ("nearest STORE --text unknown --out a.gif", "--out a.gif: pictures are written as PNG, and not as gif; end"),
        ("segment STORE --image 0 --text unknown --out a.svg", "--out a.svg: pictures are written as PNG, and not as"),
        (
            "contrast STORE --image 0 --text a --against a",
            "--text and --against are the same text, 'a', whose contrast",
        ),
        ("precompute FILE --model reference --out o", "FILE: none of its 1 file exists (first: no image); paths are"),
        (
            "precompute PICTURE --model reference --out o",
            "PICTURE: not a tar: 69 bytes, but a header alone takes 512; give",
        ),
        ("precompute none.tar --model reference --out o", "none.tar: no such file; check the path and the pattern's"),
        ("precompute SHARD --model reference --layers x --out o", "--layers x: write all, last4, 8-11 or 0,3,8-11"),
        (
            "precompute SHARD --model reference --layers 99 --out o",
            "--layers 99: the model's layers are 0 to 5",
        ),
        (
            "precompute SHARD --model reference --without L9.H9 --out o",
            "L9.H9 is not a head of the model: it has layers 0 to 5; choose another head",
        ),
        (
            "precompute SHARD --model reference --image-member nothing --out o",
            "headspan expects the members that --image-member nothing selects, but",
        ),
        (
            "precompute SHARD --model reference --decode gpu --device cpu --out o",
            "--decode gpu needs a CUDA device, but",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    words: str,
    sentence: str,
    toy_run: ToyRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("headspan.model.load.find_weights", lambda *_: pytest.fail("weights were looked for"))
    monkeypatch.chdir(tmp_path)
    forget_models()
    (tmp_path / "list.txt").write_text("no image")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").touch()
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.tar")
    names = {"STORE": toy_run.path, "SHARD": toy_run.shards[0]}
    names |= {name: tmp_path / file for name, file in (("FILE", "list.txt"), ("PICTURE", "picture.tar"))}
    names["FOLDER"] = tmp_path / "folder"
    for name, path in names.items():
        words, sentence = words.replace(name, str(path)), sentence.replace(name, str(path))
    assert main(shlex.split(words)) == 2
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("headspan: ")
    assert sentence in last
    assert not (tmp_path / "o").exists()
