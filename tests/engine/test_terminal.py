"""Printing: one line per entry, no control characters from data, any encoding, and streams that fail."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import headspan as hs
from headspan.cli.main import main
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import say, say_row, tell
from headspan.errors import HeadspanError
from headspan.escapes import escaped, shell_command
from headspan.events import Progress
from tests.conftest import ToyRun, relative_files, write_tar
from tests.engine.test_cli import flags
from tests.engine.test_labels_and_ccs import HEADS, keep

# Line ends, a tab, colours (by ESC and by C1), a title, right-to-left, separators, a lone surrogate, invisible letters.
STEERING = "\n\r\t\x1b[31m\x9b31m\x1b]0;owned\x07\u202e\u2066\u2028\u2029\x85\x0b\x0c\x00\x7f\ud800\u200b\U000e0041"
LETTERS = st.text(st.characters() | st.sampled_from(STEERING), max_size=30)


def steers(text: str) -> list[str]:
    """Letters of `text` that must not be printed, by the Unicode database; joiners of scripts and emoji may be."""
    return [
        letter
        for letter in text
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") and letter not in "\u200c\u200d"
    ]


@settings(max_examples=300, deadline=None)
@given(LETTERS)
def test_escaped_text_is_one_line_without_control_characters_and_can_be_read_back(text: str) -> None:
    shown = escaped(text)
    assert steers(shown) == []
    assert len(shown.splitlines()) <= 1
    assert escaped(shown) == shown
    if "\\" not in text:
        # Python reads it back.
        assert shown.encode("latin-1", "backslashreplace").decode("unicode_escape") == text


@pytest.mark.parametrize(
    "text", ["a dog", "Städte", "犬 と 猫", "\u200fאב".strip("\u200f"), "👩\u200d🔬", "no\u00a0break", "C:\\n"]
)
def test_letters_of_all_scripts_are_unchanged(text: str) -> None:
    assert escaped(text) == text


@settings(max_examples=300, deadline=None)
@given(LETTERS)
def test_errors_are_one_line(text: str) -> None:
    assert steers(str(HeadspanError(f"{text}: no such shard; name another"))) == []


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_characters="\0") | st.sampled_from(STEERING.replace("\0", "")), max_size=9))
)
def test_a_shell_splits_a_printed_command_into_its_words(words: list[str]) -> None:
    # Python's arguments contain no halves of surrogate pairs, except those that stand for bytes.
    words = [word for word in words if not any("\ud800" <= letter <= "\udfff" for letter in word)]
    line = shell_command(["printf", "%s\\0", "x", *words])
    assert steers(line) == []
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert done.stdout.decode().split("\0")[1:-1] == words


def test_a_file_name_that_is_not_utf8_is_printed_so_that_the_shell_reads_it() -> None:
    name = os.fsdecode(b"caf\xe9 'now'.tar")
    done = subprocess.run(["bash", "-c", shell_command(["printf", "%s", name])], capture_output=True, check=True)
    assert done.stdout == b"caf\xe9 'now'.tar"


def test_lines_rows_and_notes_are_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    say(STEERING)
    say_row(7, STEERING, "x")
    tell(STEERING)
    ProgressPrinter()(Progress("images", 1, 1, STEERING))
    said = capsys.readouterr()
    assert [steers(line) for line in said.out.split("\n")] == [[], ["\t", "\t"], []]
    assert [steers(line) for line in said.err.split("\n")] == [[], [], []]


AWKWARD_KEYS = ("one\ntwo", "tab\there", "\x1b[31mred", "c1\x9b31m", "bidi\u202egpj", "sep\u2028\u2029\x85", "bell\x07")


@pytest.fixture(scope="module")
def awkward(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with control characters in the keys of its bad images, in its texts and in its labels."""
    folder = tmp_path_factory.mktemp("awkward")
    shard = write_tar(folder / "a.tar", [(f"{key}.jpg", b"bad") for key in AWKWARD_KEYS])
    made = toy_run.settings(shards=[str(shard), str(toy_run.shards[1])], emit=("heads",))
    hs.precompute(out=folder / "s.zarr", **made)
    # A pool refuses texts with line ends, tabs or halves of surrogate pairs.
    steering = STEERING.translate(dict.fromkeys(map(ord, "\n\r\t\ud800")))
    pool = hs.Pool("hand", tuple(f"text {n}{steering}" for n in range(7)), ("a\x1b[1mb",) * 4 + ("c\u2028d",) * 3)
    keep(hs.open(folder / "s.zarr"), HEADS, pool)
    return folder / "s.zarr"


def test_no_command_prints_control_characters_from_data(
    awkward: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store = str(shutil.copytree(awkward, tmp_path / "s.zarr"))
    for command in (
        ["info", store, "--bad"],
        ["info", store],
        ["label", store],
        ["ccs", store],
        ["votes", store],
        ["compare", store, store],
        ["verify", store],
        ["info", f"{store}\x1b[31m\nno such store"],
        ["label", store, "--run", "\x1b]0;owned\x07"],
        ["textspan", store, "--texts", "\u202eno such pool"],
    ):
        code = main(command)
        said = capfd.readouterr()
        assert code == (2 if "such" in command[-1] or "owned" in command[-1] else 0), said.err
        assert [letter for line in said.out.split("\n") for letter in steers(line) if letter != "\t"] == []
        assert [steers(line) for line in said.err.split("\n") if steers(line)] == []
        if command[-1] == "--bad":
            rows = [line.split("\t") for line in said.out.splitlines()]
            assert [row[1] for row in rows] == [escaped(key) for key in AWKWARD_KEYS]
            assert {len(row) for row in rows} == {4}
        if command[0] == "label" and not code:
            assert [line.count("\t") for line in said.out.splitlines()] == [0] + [4] * 6 + [0] * 3


class Streams:
    """Standard output and standard error in one encoding, kept in memory."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.files = [io.TextIOWrapper(io.BytesIO(), encoding, "strict", newline="", write_through=False) for _ in "oe"]

    def read(self) -> tuple[str, str]:
        for file in self.files:
            file.flush()
        out, err = (file.buffer.getvalue().decode(file.encoding) for file in self.files)  # type: ignore[attr-defined]
        return out, err


@contextmanager
def replaced(monkeypatch: pytest.MonkeyPatch, **streams: object) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, stream in streams.items():
            patch.setattr(sys, name, stream)
        yield


def run(command: list[str]) -> int:
    """The exit code of a command or a help page."""
    try:
        return main(command)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1


@pytest.fixture(scope="module")
def store(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = shutil.copytree(toy_run.path, tmp_path_factory.mktemp("outputs") / "é…→.zarr")
    pool = hs.Pool("hand", tuple(f"text {n} é→犬" for n in range(7)), ("plätze",) * 4 + ("犬",) * 3)
    keep(hs.open(path), HEADS, pool)
    assert main(["label", str(path)]) == main(["ccs", str(path)]) == 0
    return str(path)


COMMANDS: dict[str, Callable[[str], list[str]]] = {
    **{
        f"{name or 'the'} help": lambda store, name=name: [*name.split(), "--help"]  # type: ignore[misc]
        for name in ("", "precompute", "textspan", "label", "pool", "agreement", "demo")
    },
    "info": lambda store: ["info", store],
    "bad": lambda store: ["info", store, "--bad"],
    "verify": lambda store: ["verify", store],
    "damaged": lambda store: ["verify", f"{store}-damaged"],
    "label": lambda store: ["label", store],
    "ccs": lambda store: ["ccs", store],
    "votes": lambda store: ["votes", store],
    "compare": lambda store: ["compare", store, store],
    "nowhere": lambda store: ["info", "/nowhere/é…"],
    "unknown flag": lambda store: ["info", store, "--bäd"],
}


@pytest.fixture(scope="module", autouse=True)
def damaged(store: str) -> None:
    path = Path(shutil.copytree(store, f"{store}-damaged"))
    file = path / "heads" / "c" / "1" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1] + b"?")


@pytest.fixture(scope="module")
def wanted(store: str) -> dict[str, tuple[int, str, str]]:
    """Exit code, output and errors of every command if nothing prevents printing."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "100")
        for name, command in COMMANDS.items():
            streams = Streams()
            with replaced(patch, stdout=streams.files[0], stderr=streams.files[1]):
                found[name] = (run(command(store)), *streams.read())
    assert {name: code for name, (code, _, _) in found.items() if code} == {
        "damaged": 1,
        "nowhere": 2,
        "unknown flag": 2,
    }
    assert sum("…" in out for _, out, _ in found.values()) >= 3
    return found


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize("name", COMMANDS)
def test_letters_that_the_encoding_of_the_output_lacks_are_escaped(
    name: str, encoding: str, store: str, wanted: dict[str, tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    streams = Streams(encoding)
    with replaced(monkeypatch, stdout=streams.files[0], stderr=streams.files[1]):
        code = run(COMMANDS[name](store))
        found = streams.read()
    expected = [text.encode(encoding, "backslashreplace").decode(encoding) for text in wanted[name][1:]]
    # The encoding changes only the letters that it lacks.
    assert (code, *found) == (wanted[name][0], *expected)


def broken_pipe() -> io.TextIOWrapper:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


UNWRITABLE: dict[str, Callable[[], object]] = {
    "closed": lambda: None,
    "full": lambda: open("/dev/full", "w"),  # noqa: PTH123, SIM115
    "broken pipe": broken_pipe,
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("kind", UNWRITABLE)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_print_still_works_and_reports_it_once(
    name: str, kind: str, store: str, wanted: dict[str, tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = wanted[name]
    streams, unwritable = Streams(), UNWRITABLE[kind]()
    with replaced(monkeypatch, stdout=unwritable, stderr=streams.files[1]):
        assert run(COMMANDS[name](store)) == code
        if unwritable is not None:
            unwritable.close()  # type: ignore[attr-defined]
    said = streams.read()[1]
    if kind == "closed" and "help" in name:
        # argparse writes to standard error then.
        assert said == out
        return
    assert said.startswith(err)
    lost = said.removeprefix(err).splitlines()
    if kind == "broken pipe" or not out:
        assert lost == []
    else:
        reason = {"closed": "it is closed", "full": "No space left on device"}[kind]
        assert lost == [
            f"headspan: standard output cannot be written ({reason}); the command ran, but part of its output is "
            "missing"
        ]
    # If only standard error cannot be written, the output is complete.
    streams, unwritable = Streams(), UNWRITABLE[kind]()
    with replaced(monkeypatch, stdout=streams.files[0], stderr=unwritable):
        assert run(COMMANDS[name](store)) == code
        if unwritable is not None:
            unwritable.close()  # type: ignore[attr-defined]
    assert streams.read()[0] == out


def test_a_process_with_closed_streams_writes_the_same_store(toy_copy: Path, tmp_path: Path) -> None:
    keep(hs.open(toy_copy), HEADS)
    other = Path(shutil.copytree(toy_copy, tmp_path / "other.zarr"))
    assert main(["label", str(other)]) == 0
    command = shlex.join([sys.executable, "-m", "headspan", "label", str(toy_copy)])
    done = subprocess.run(["bash", "-c", f"exec {command} <&- >&- 2>&-"], check=False)
    assert done.returncode == 0
    files, wanted = relative_files(toy_copy), relative_files(other)
    # The record of a run says when it was made.
    record = "records/results/labels/hand.json"
    assert json.loads(files.pop(record))["files"] == json.loads(wanted.pop(record))["files"]
    assert files == wanted


def test_a_full_output_keeps_the_exit_code_and_an_old_locale_keeps_the_help(toy_run: ToyRun) -> None:
    command = [sys.executable, "-m", "headspan"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*command, "info", toy_run.path], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 0
    assert len(done.stderr.splitlines()) == 1
    old = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([*command, "precompute", "--help"], capture_output=True, text=True, check=False, env=old)
    assert done.returncode == 0
    assert "hf-hub:\\u2026" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "usage", "sentence"),
    [
        (["precompute", "a.tar", "--out", "x", "--modle", "y"], "precompute", "no flag --modle; did you mean --model?"),
        (["precompute", "a.tar", "--modle=y"], "precompute", "no flag --modle; did you mean --model?"),
        (
            ["textspan", "s", "--text-per-head", "3"],
            "textspan",
            "no flag --text-per-head; did you mean --texts-per-head?",
        ),
        (["info", "s", "--frobnicate"], "info", "no flag --frobnicate; headspan info --help lists the flags"),
        (["info", "s", "-x"], "info", "there is no flag -x; headspan info --help lists the flags"),
        (["info", "s", "t"], "info", "unexpected argument t; headspan info --help lists the arguments"),
        (["report", "s", "--out"], "report", "argument --out: expected one argument"),
        (["--modle"], "COMMAND", "there is no flag --modle; headspan --help lists the flags"),
        (["--modle", "info", "s"], "COMMAND", "there is no flag --modle; headspan --help lists the flags"),
        (["-x"], "COMMAND", "there is no flag -x; headspan --help lists the flags"),
        ([], "COMMAND", "the following arguments are required: COMMAND"),
        (["infoo", "s"], "COMMAND", "there is no command infoo; did you mean info?"),
        (["frobnicate"], "COMMAND", "there is no command frobnicate; headspan --help lists the commands"),
        (["repair", "-x"], "repair", "there is no flag -x; headspan repair --help lists the flags"),
        (["repair"], "repair", "the following arguments are required: store"),
    ],
)
def test_an_unknown_flag_or_command_shows_the_usage_and_the_nearest_one(
    arguments: list[str], usage: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert usage in said.err.splitlines()[0] or usage in said.err.splitlines()[1]
    assert sentence in said.err.splitlines()[-1]


def test_info_prints_values_that_look_like_flags_after_an_equals_sign_or_two_dashes(
    toy_run: ToyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shard = Path("-a 'tar'\n of mine.tar")
    shutil.copyfile(toy_run.shards[1], shard)
    made = toy_run.settings(shards=[f"./{shard}"], emit=("heads",))
    hs.precompute(out="--run $HOME.zarr", **made)
    root = Path("--run $HOME.zarr", "zarr.json")
    about = json.loads(root.read_text())
    about["attributes"]["headspan"]["made_with"]["shards"] = [str(shard)]
    root.write_text(json.dumps(about))
    capsys.readouterr()
    assert main(["info", "./--run $HOME.zarr"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {lines['command'].strip()}"], capture_output=True, check=True
    ).stdout.decode()
    words = said.split("\0")[:-1]
    assert words[-2:] == ["--", str(shard)]
    assert "--out=--run $HOME.zarr" in words
    wanted = relative_files(Path("--run $HOME.zarr"))
    shutil.rmtree("--run $HOME.zarr")
    assert main(words[1:]) == 0
    assert relative_files(Path("--run $HOME.zarr")).keys() == wanted.keys()


def test_a_run_without_a_usable_image_exits_with_1(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"bad") for n in range(3)])
    out = tmp_path / "my run.zarr"
    command = ["precompute", str(shard), *flags(toy_run, out)[4:]]
    # The first time, and when the run is finished already.
    for _ in range(2):
        assert main(command) == 1
        said = capsys.readouterr().out.splitlines()[-1]
        assert said == (
            f"none of 3 images could be used, so the store is empty; `headspan info '{out}' --bad` lists the reasons"
        )
