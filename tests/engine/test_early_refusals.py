"""Numbers of flags are judged when the command line is read: before a store, a model or a file is opened."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator

import pytest

from headspan.cli.main import build_parser, main
from headspan.cli.numbers import Real, Whole
from headspan.cli.sub_commands import _Later
from headspan.errors import SettingsError


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
