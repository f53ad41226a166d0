"""Commands as a user types them: output, exit codes, help pages, and errors without a traceback."""

import argparse
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.main import build_parser, main
from headspan.cli.progress import ProgressPrinter
from headspan.config import parse_layers
from headspan.events import Progress
from tests.conftest import BROKEN_ROWS, ToyRun, image_members, relative_files, write_tar

HEADSPAN = [sys.executable, "-m", "headspan"]


def flags(toy_run: ToyRun, out: Path) -> list[str]:
    """`precompute`'s command line for the toy."""
    shards = [str(shard) for shard in toy_run.shards]
    model = ["--model", str(toy_run.config), "--pretrained", str(toy_run.weights), "--device", "cpu"]
    sizes = ["--layers", "all", "--emit", "heads,patches,mlps", "--batch-size", "7", "--unit-images", "32"]
    return ["precompute", *shards, "--out", str(out), *model, *sizes, "--decode", "exact"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence of a command that exits with code 2."""
    assert main(arguments) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("headspan: ")]
    assert len(lines) == 1
    return lines[0]


def test_all_commands_of_the_analysis_run_one_after_another(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "run.zarr"
    pool = tmp_path / "pool.tsv"
    pool.write_text("".join(f"{number} {noun}\t{noun}s\n" for noun in ("cat", "dog", "tree") for number in range(9)))
    assert main(flags(toy_run, store)) == 0
    captured = capsys.readouterr()
    assert f"67 images stored in {store}" in captured.out
    assert "3 images could not be used:" in captured.out
    stage_seconds = re.search(
        r"^([\d.]+) s: waiting for images ([\d.]+) s, model ([\d.]+) s, storing ", captured.out, re.M
    )
    assert stage_seconds
    assert "; at the same time on other threads: reading " in captured.out
    assert "bytes per image" in captured.err
    assert "images: 70 of 70 (100 %)" in captured.err
    for command, wanted in (
        (["info", str(store)], "67 of 70 planned, 3 bad"),
        (["verify", str(store)], "contributions sum to the embeddings within"),
        (["textspan", str(store), "--texts", str(pool), "--texts-per-head", "5"], "saved as textspan/pool"),
        (["label", str(store)], "labels by concepts of pool pool"),
        (["ccs", str(store)], "CCS@5"),
        (["report", str(store), "--out", str(tmp_path / "report.html")], "report written to"),
    ):
        assert main(command) == 0
        assert wanted in capsys.readouterr().out
    assert "<html" in (tmp_path / "report.html").read_text()
    again = ["textspan", str(store), "--texts", str(pool), "--texts-per-head", "5"]
    before = relative_files(store)
    assert main(again) == 0
    assert "textspan/pool was already made with the same settings; it is unchanged" in capsys.readouterr().err
    sentence = refused(capsys, *again, "--rank", "3")
    assert "rank 80, now 3" in sentence
    assert sentence.endswith(
        "--overwrite (in Python overwrite=True), which replaces textspan/pool; labels/pool, ccs/pool would be kept, "
        "marked as of an older run"
    )
    assert relative_files(store) == before
    assert main([*again, "--rank", "3", "--overwrite"]) == 0
    assert "kept labels/pool, ccs/pool, now marked as of an older textspan/pool" in capsys.readouterr().err


def test_info_lists_the_bad_images_with_shard_key_and_reason(
    toy_run: ToyRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(toy_run.path), "--bad"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == list(BROKEN_ROWS)
    assert [row[1] for row in rows] == [f"{row:05d}" for row in BROKEN_ROWS]
    assert all(row[2].endswith(".tar") and row[3] for row in rows)


def test_verify_exits_with_1_if_a_byte_has_changed(toy_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = toy_copy / "heads" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["verify", str(toy_copy)]) == 1
    assert "unit 1, rows 32 to 63: heads/c/1/0/0/0 has changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda f: [*f[:1], "nowhere.tar", *f[4:]], "nowhere.tar: no such file"),
        (lambda f: [*f, "--model", "ViT-B-33"], "ViT-B-33: open_clip has no such model"),
        (lambda f: [*f, "--model", "RN50"], "its image tower is a ResNet; headspan decomposes"),
        (lambda f: [*f, "--model", "ViT-B-32"], "its weights do not fit ViT-B-32"),
        (lambda f: [*f, "--model", "ViT-B-32", "--pretrained", "openay"], "neither a tag of this model nor a file"),
        (lambda f: [*f, "--layers", "7"], "--layers 7: the model's layers are 0 to 2"),
        (lambda f: [*f, "--emit", "heads,tails"], "--emit tails is unknown; choose from heads, patches, mlps"),
        (lambda f: [*f, "--batch-size", "0"], "--batch-size 0 is too small"),
        (lambda f: [*f, "--device", "cuda:9"], "--device cuda:9: torch sees"),
        (lambda f: [*f, "--precision", "fp8"], "--precision fp8 is unknown"),
        (lambda f: [*f, "--decode", "draft"], "--decode draft is unknown; choose from fast, exact"),
    ],
)
def test_a_wrong_value_of_a_flag_gives_one_sentence_and_exit_code_2(
    change: Callable[[list[str]], list[str]],
    wanted: str,
    toy_run: ToyRun,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run.zarr"
    assert wanted in refused(capsys, *change(flags(toy_run, out)))
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_shard_stops_the_plan(toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = write_tar(tmp_path / "cut.tar", image_members(range(5)))
    shard.write_bytes(shard.read_bytes()[:2000])
    arguments = flags(toy_run, tmp_path / "run.zarr")
    sentence = refused(capsys, arguments[0], str(shard), *arguments[4:])
    assert "cut.tar: truncated" in sentence
    assert "fetch the shard again" in sentence


@pytest.mark.parametrize("command", ["info", "verify", "textspan", "label", "ccs", "report"])
def test_commands_on_a_missing_store_say_that_it_is_missing(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such folder; give the path that" in refused(capsys, command, str(tmp_path / "run.zarr"))


def test_ccs_before_textspan_names_the_command_to_run(toy_copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "run headspan textspan" in refused(capsys, "ccs", str(toy_copy))


def _small_files() -> None:
    # Writing fails half-way, as on a full disk. Without this, SIGXFSZ would end the process.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


def test_a_full_disk_gives_one_sentence_and_the_run_continues_later(toy_run: ToyRun, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    done = subprocess.run(
        [*HEADSPAN, *flags(toy_run, out)], capture_output=True, text=True, check=False, preexec_fn=_small_files
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "cannot be written (File too large); free disk space" in done.stderr.splitlines()[-1]
    again = subprocess.run([*HEADSPAN, *flags(toy_run, out)], capture_output=True, text=True, check=True)
    assert "67 images stored" in again.stdout
    assert relative_files(out) == relative_files(toy_run.path)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_command_says_how_to_continue_and_has_its_own_exit_code(
    number: signal.Signals, code: int, word: str, toy_run: ToyRun, tmp_path: Path
) -> None:
    out = tmp_path / "run.zarr"
    # Units of eight images, so that the run is long enough to be interrupted in the middle.
    command = [*HEADSPAN, *flags(toy_run, out), "--unit-images", "8", "--batch-size", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    commits = out / "records" / "commits"
    while not list(commits.glob("unit-*.json")):
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.001)
    process.send_signal(number)
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == code
    wanted = f"headspan: {word}; finished units are kept; run the same command to continue"
    assert errors.splitlines()[-1] == wanted
    # No temporary file of the unit in flight is left, and no log.
    assert not list(out.rglob(".*.tmp"))
    assert not list(out.rglob("*.log"))
    assert not hs.open(out).complete


def test_ctrl_c_while_the_command_line_loads_has_its_own_exit_code() -> None:
    # The signal arrives while the first module with a long import is searched for.
    code = """
import os, runpy, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "headspan.cli.main":
            assert "numpy" not in sys.modules
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["headspan", "models"]
runpy.run_module("headspan", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "headspan: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["info", ""], "the name of the store is empty"),
        (["precompute", "", "--out", "x"], "an empty name was given as a shard"),
        (["precompute", "a.tar", "--out", ""], "--out is empty; name the store"),
        (["demo", "--out", ""], "--out is empty; name the folder"),
        (["demo", "--out", "a\0b"], "no folder can have that name"),
        (["pool", "--llm", "m", "--ask", "x", "--count", "0"], "--count 0 is too small; give at least 1"),
    ],
)
def test_empty_arguments_are_refused_in_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert sentence in said.err
    assert not list(tmp_path.iterdir())


def test_a_descending_range_of_layers_is_refused() -> None:
    with pytest.raises(hs.HeadspanError, match="--layers 0,3-1: 3-1 runs backwards; write 1-3"):
        parse_layers("0,3-1", 6)


MAIN_HELP = """\
usage: headspan [-h] [--version] COMMAND ...

Find out what each attention head of a CLIP image encoder does.

precompute:
  precompute   stream shards of images through an encoder into a store
  frames       write frames of videos as shards of images
    $ headspan precompute 'data/{0000..0127}.tar' --out run.zarr

inspect:
  models       list open_clip's models, and which of them headspan supports
  info         show what a store holds
  verify       check a store's files, numbers and source tars
  repair       compute damaged or quarantined units again
  runs         list the results of analyses in a store, or remove some
  export       write a store as Parquet, NumPy, safetensors or CSV files
    $ headspan verify run.zarr

analyse:
  textspan     describe every head by texts (TEXTSPAN)
  label        give every head one concept as its label
  ccs          count how many texts of a head match its label (CCS)
  compare      show the scores of several stores side by side
  report       write the results as one HTML file
    $ headspan textspan run.zarr --texts-per-head 60

explore:
  explore      show stores as linked pages in a web browser
  nearest      find the images nearest to an image or a text, as heads see them
  segment      map where heads see a text in images
  contrast     map where heads see one text rather than another
  heads        rank the heads for a list of words, or by a text's score
  spectra      describe what each head's weights can write, beside the images
    $ headspan segment run.zarr --image 7 --text "a red car" --out map.png

prune:
  prune        measure what tasks lose without some heads, beside random heads
  concepts     compare what concepts lose without the heads of one of them
  spurious     score the worst group without the heads of a spurious cue
  reconstruct  classify with heads replaced by what their texts span
    $ headspan prune run.zarr --task cifar10 --heads high --heads random

features:
  features     learn sparse features of embeddings; score, show and use them
    $ headspan features train run.zarr --out run.features

describe:
  describe     train a language model to describe classes as the model prefers
    $ headspan describe train run.zarr --language-model lm.gguf --out trained

language models:
  pool         have a language model write a pool of texts
  votes        show every vote, with the raw answers
  agreement    measure how far judges and people agree
  `label --llm`, `ccs --judge` and `describe inspect --judge` ask them too.
    $ headspan ccs run.zarr --judge gpt-4o --dry-run

demo:
  demo         draw images and run every step on them, without a network
    $ headspan demo --out headspan-demo

options:
  -h, --help  show this help message and exit
  --version   print the version and exit

`headspan COMMAND --help` explains a command's flags.
"""


def test_the_main_help_lists_the_commands_in_groups_with_an_example_each() -> None:
    done = subprocess.run(
        [*HEADSPAN, "--help"], capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"}
    )
    assert done.stdout == MAIN_HELP
    assert max(map(len, MAIN_HELP.splitlines())) < 80


def every_parser(
    parsers: Mapping[str, argparse.ArgumentParser], before: str = ""
) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command and sub-command, by its words."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, parser in parsers.items():
        found[before + name] = parser
        # Sub-commands are added when the page is first shown.
        parser.format_help()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= every_parser(action.choices, f"{before}{name} ")
    return found


def test_every_example_of_the_help_pages_is_a_valid_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser, commands = build_parser()
    examples = re.findall(r"^    \$ (.+)$", parser.format_help(), re.M)
    assert len(examples) == 9
    for name, command in every_parser(commands.parsers).items():
        page = command.format_help()
        assert max(map(len, page.splitlines())) < 80, name
        (example,) = re.findall(r"^example:\n  (headspan (?:\\\n|.)+)$", page, re.M)
        assert example.startswith(f"headspan {name}")
        examples.append(example)
    for example in examples:
        parser.parse_args(shlex.split(example.replace("\\\n", ""))[1:])


def test_repair_prints_the_units_it_computed_and_the_verdict(
    toy_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = toy_copy / "heads" / "c" / "1" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert main(["verify", str(toy_copy)]) == 1
    assert f"1 problem in 3 units; `headspan repair {toy_copy}` repairs the store" in capsys.readouterr().out
    assert main(["repair", str(toy_copy)]) == 0
    out = capsys.readouterr().out
    assert "1 unit computed again: 1" in out
    assert "files, records, rows and moments agree" in out
    assert main(["verify", str(toy_copy), "--sources"]) == 0


def test_the_command_that_info_prints_writes_the_same_bytes(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["info", str(toy_run.path)]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "torch " in lines["made with"]
    words = shlex.split(lines["command"])
    assert words[:2] == ["headspan", "precompute"]
    # The printed path is only the name of the store, so the command writes into the current folder.
    monkeypatch.chdir(tmp_path)
    assert main([*words[1:], "--workers", "3"]) == 0
    assert relative_files(tmp_path / toy_run.path.name) == relative_files(toy_run.path)


def test_too_many_bad_images_stop_the_run_and_committed_units_stay(
    toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.zarr"
    # Three of seventy images are bad: in the first, the second and the last unit.
    sentence = refused(capsys, *flags(toy_run, out), "--max-bad", "1.5%")
    assert "2 of 70 images are bad, more than --max-bad 1.5% allows (row 33, 00033 in" in sentence
    # A unit is committed while the next one is computed, which may then be committed too.
    committed = len(hs.open(out).contents.records)
    assert committed >= 2
    assert "more than --max-bad 1 allows" in refused(capsys, *flags(toy_run, out), "--max-bad", "1")
    assert len(hs.open(out).contents.records) == committed
    assert main([*flags(toy_run, out), "--max-bad", "3"]) == 0
    assert relative_files(out) == relative_files(toy_run.path)


@pytest.mark.parametrize("text", ["many", "-1", "1.5", "%"])
def test_an_invalid_max_bad_is_refused(
    text: str, toy_run: ToyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, *flags(toy_run, tmp_path / "s.zarr"), f"--max-bad={text}")
    assert f"--max-bad {text}: write a percentage of the images, as in 1%" in sentence


def test_progress_lines_show_the_mean_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("headspan.cli.progress.time.monotonic", lambda: now)
    printer = ProgressPrinter()
    for seconds, done in ((0.0, 0), (0.5, 10), (6.0, 50), (7.0, 60), (10.0, 100)):
        now = 100.0 + seconds
        printer(Progress("images", done, 100, "1 bad" if done else ""))
    # No rate is shown over so short a time.
    printer = ProgressPrinter()
    for done in (0, 60):
        now += 0.3
        printer(Progress("images", done, 60))
    assert capsys.readouterr().err.splitlines() == [
        "images: 50 of 100 (50 %), 8.3 images/s, 6 s left, 1 bad",
        "images: 100 of 100 (100 %), 10.0 images/s, 1 bad",
        "images: 60 of 60 (100 %)",
    ]
