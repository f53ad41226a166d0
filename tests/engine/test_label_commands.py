"""The commands about labels, scores and pools: what they print, cost, store and refuse."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import headspan as hs
from headspan.cli.main import main
from headspan.errors import percent
from tests.conftest import relative_files
from tests.engine.chat_server import KEY, ChatServer, chat_server
from tests.engine.test_cli import HEADSPAN, refused
from tests.engine.test_labels_and_ccs import HEADS, POOL, keep
from tests.engine.test_llm_labels import PLAIN, say
from tests.test_structure import failures_without


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ChatServer]:
    """A server that the environment names, and a cache folder of the test's own."""
    with chat_server() as server:
        server.answer = say
        server.key = KEY
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield server


@pytest.fixture
def path(toy_copy: Path) -> str:
    keep(hs.open(toy_copy), HEADS, PLAIN)
    return str(toy_copy)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(arguments) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    return said.out, said.err


def test_the_chain_of_labels_votes_agreement_and_comparison(
    path: str, chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "label", path, "--llm", "m")
    assert f"5 questions to m at {chat.url}: 0 answered before, 5 to ask" in err
    assert re.search(r"budget: 25 calls and [\d,]+ tokens, retries included", err)
    assert "made 5 calls and used 250 tokens" in out
    assert f"by m at {chat.url}, shown 5 labelled examples" in out
    assert "L0.H2\tplacement" in out
    assert "L1.H2\t-" in out
    assert "labels counted as one: place, placement, places (as place)" in out
    assert "heads without a label: 1 (" in out

    out, err = run(capsys, "ccs", path, "--judge", "kind", "--judge", "even", "--judge", "low")
    assert "votes by majority of kind, even, low" in out
    assert "high 2, moderate 1, low 2" in out
    assert "heads per label: place 3, animals 1, colours 1" in out
    assert re.search(r"^all +6 +5 +2 +1 +2 .* 0\.600$", out, re.MULTILINE)
    assert re.search(r"^L1 +3 +2 +1 +0 +2 ", out, re.MULTILINE)
    # What judges would say of other texts is not known.
    assert "chance is not known, since labels or votes do not follow from the pool's concepts" in out
    assert "(chance)" not in out
    assert "* [unsourced]: our own formulas, because the published ones could not be read: association score" in out
    assert "also [unsourced]: votes are merged by majority; a tie counts as not consistent" in out

    out, _ = run(capsys, "votes", path, "--head", "L0.H1")
    assert "L0.H1  colours  CCS 3" in out
    assert "L0.H0" not in out
    # kind and even vote 1 on text 4, low votes 0.
    assert re.search(r"\+ text 4\n +1  kind\n +← .*\n +1  even\n +← .*\n +0  low\n +← \{\"associated\": 0\}", out)

    out, _ = run(capsys, "agreement", path)
    assert "kind and even" in out
    assert re.search(r"even and low\n    21 texts, \d+\.\d % the same  κ -?\d\.\d{3} \[", out)
    assert re.search(r"kind and even\n    21 texts, .* κ 0\.000 .* ρ -  τ-b -", out)

    out, _ = run(capsys, "compare", path, path)
    assert len(re.findall(r"^headspan-toy|^\S*toy\S* ", out, re.MULTILINE)) >= 2
    assert f"method 1: texts of pool plain, labels by m at {chat.url}" in out
    assert "cannot be compared" not in out

    asked = len(chat.requests)
    run(capsys, "label", path, "--llm", "m")
    run(capsys, "ccs", path, "--judge", "kind", "--judge", "even", "--judge", "low")
    assert len(chat.requests) == asked


def test_people_vote_in_a_file_that_is_read_back(
    path: str, chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "label", path, "--llm", "m")
    run(capsys, "ccs", path, "--judge", "even")
    spans = tmp_path / "spans.csv"
    assert "agreement needs two raters; add a judge with" in refused(capsys, "agreement", path)
    out, _ = run(capsys, "agreement", path, "--write", str(spans))
    assert f"21 texts written to {spans}" in out
    with spans.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    # The person votes like the judge, except on text 6.
    with spans.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "associated": int(int(row["text"][-1]) % 2 == 0 and row["text"] != "text 6")})
    out, _ = run(capsys, "agreement", path, "--human", str(spans))
    assert f"even and {spans}" in out
    different = sum(row["text"] == "text 6" for row in rows)
    assert f"21 texts, {percent(1 - different / 21)} the same" in out


def test_without_a_model_nothing_is_asked_even_if_the_environment_names_an_endpoint(
    toy_copy: Path, chat: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(hs.open(toy_copy), HEADS, POOL)
    out, _ = run(capsys, "label", str(toy_copy))
    assert "by concepts of pool hand" in out
    out, _ = run(capsys, "ccs", str(toy_copy))
    assert "labels by concepts of pool hand\nvotes by concepts of pool hand" in out
    assert chat.requests == []


def test_a_dry_run_shows_prompts_and_cost_and_changes_nothing(
    path: str, chat: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    before = relative_files(Path(path))
    out, _ = run(capsys, "label", path, "--llm", "m", "--dry-run", "--price", "2.5,10")
    assert out.count("--- m, question ") == 5
    assert '"text 3"\n"text 0"\n"text 4"\n"text 6"\n"text 5"\nAnswer:' in out
    assert re.search(r"about [\d,]+ tokens of prompts and at most 1,280 of answers, \$0\.0\d at most", out)
    assert "nothing was sent (--dry-run)" in out
    assert relative_files(Path(path)) == before
    run(capsys, "label", path, "--llm", "m")
    before = relative_files(Path(path))
    out, _ = run(capsys, "ccs", path, "--judge", "kind", "--judge", "low", "--dry-run")
    assert out.count("--- kind, question ") == out.count("--- low, question ") > 5
    assert relative_files(Path(path)) == before
    assert len(chat.requests) == 5


def test_scores_made_in_different_ways_are_reported_as_not_comparable(
    path: str, chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(path, tmp_path / "other.zarr")
    for store, judge in ((path, "kind"), (str(other), "even")):
        run(capsys, "label", store, "--llm", "m")
        run(capsys, "ccs", store, "--judge", judge)
    out, _ = run(capsys, "compare", path, str(other))
    assert re.search(r"other\.zarr +hand +2 +6 ", out)
    assert "method 2: texts of pool plain, labels by m at" in out
    assert "votes by even\nscores made by different methods cannot be compared" in out


def test_a_pool_is_named_after_its_request_and_its_labels_name_the_author(
    toy_copy: Path,
    chat: ChatServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [{"text": f"{number} dogs", "concept": ("dogs", "cats")[number % 2]} for number in range(6)]
    chat.answer = lambda model, prompt: json.dumps({"texts": texts})
    out, _ = run(capsys, "pool", "--llm", "m", "--ask", "Numbers of dogs!", "--count", "6", "--concepts")
    assert "written to numbers-of-dogs.tsv" in out
    hs.textspan(hs.open(toy_copy), "numbers-of-dogs.tsv", texts_per_head=5, save=True)
    out, _ = run(capsys, "label", str(toy_copy), "--run", "numbers-of-dogs")
    assert out.startswith("labels by concepts of pool numbers-of-dogs, written by m\n")


def test_a_pool_is_written_and_continued(chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = iter(range(1000))
    chat.answer = lambda model, prompt: json.dumps({"texts": [f"Picture {next(numbers)}" for _ in range(4)]})
    command = ["pool", "--llm", "m", "--ask", "descriptions", "--out", str(tmp_path / "p.txt"), "--per-call", "4"]
    out, _ = run(capsys, *command, "--count", "10", "--dry-run")
    assert out.count("--- m, question ") == 3
    assert not (tmp_path / "p.txt").exists()
    out, err = run(capsys, *command, "--count", "10")
    assert "3 questions to m at" in err
    assert f"10 texts by m at {chat.url} written to {tmp_path / 'p.txt'}" in out
    assert len((tmp_path / "p.txt").read_text().splitlines()) == 10
    asked = len(chat.requests)
    out, _ = run(capsys, *command, "--count", "12")
    assert len((tmp_path / "p.txt").read_text().splitlines()) == 12
    # The first three lists had twelve texts.
    assert len(chat.requests) == asked
    _, err = run(capsys, *command, "--count", "12")
    assert "there is nothing to ask" in err


def test_the_budget_that_is_printed_is_that_of_the_whole_pool(
    chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # At most one new text in each list.
    chat.answer = lambda model, prompt: json.dumps({"texts": [f"Picture {hash(prompt)}"]})
    command = ["pool", "--llm", "m", "--ask", "descriptions", "--out", str(tmp_path / "p.txt"), "--per-call", "9"]
    assert main([*command, "--count", "45"]) == 2
    said = capsys.readouterr()
    (budget,) = re.findall(r"budget: (\d+) calls", said.err)
    assert len(chat.requests) == int(budget) == 25
    assert "raise --max-calls and --max-tokens" in said.err
    assert len((tmp_path / "p.txt").read_text().splitlines()) >= 20


def test_paid_labels_and_votes_are_replaced_only_on_request(
    path: str, chat: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "label", path, "--llm", "m")
    run(capsys, "ccs", path, "--judge", "kind")
    before, asked = relative_files(Path(path)), len(chat.requests)
    for command in (
        ["label", path, "--llm", "n"],
        ["ccs", path, "--judge", "even"],
    ):
        assert "or give --overwrite" in refused(capsys, *command)
        # A dry run still prints the cost.
        out, _ = run(capsys, *command, "--dry-run")
        assert "call" in out
    assert relative_files(Path(path)) == before
    assert len(chat.requests) == asked
    # Repeating a command reports that the run exists, and asks nothing.
    _, err = run(capsys, "label", path, "--llm", "m")
    assert "labels/hand already has the answers of m; it is unchanged" in err
    out, err = run(capsys, "ccs", path, "--judge", "kind")
    assert "ccs/hand already has the votes of these judges; it is unchanged" in err
    assert "votes by kind" in out
    assert relative_files(Path(path)) == before
    _, err = run(capsys, "ccs", path, "--judge", "even", "--overwrite")
    _, err = run(capsys, "label", path, "--llm", "n", "--overwrite")
    assert "kept ccs/hand, now marked as of an older labels/hand" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["label", "--max-calls", "3"], "--max-calls has no effect without a language model; name one with --llm"),
        (["label", "--examples", "x.toml"], "--examples has no effect without a language model; name one with --llm"),
        (["label", "--dry-run"], "--dry-run has no effect without a language model; name one with --llm"),
        (["ccs", "--add"], "--add has no effect without a language model; name one with --judge"),
        (["ccs", "--base-url", "http://x"], "--base-url has no effect without a language model; name one with --judge"),
        (["ccs", "--judge", "a", "--dry-run"], "no head has a label yet; run headspan label"),
        (["label", "--llm", "m", "--price", "cheap"], "--price cheap: write dollars per million tokens"),
        (["label", "--llm", "m", "--max-tokens", "-1"], "--max-tokens -1 is too small; give at least 0"),
        (["label", "--llm", "m", "--answer-tokens", "0"], "--answer-tokens 0 is too small"),
        (["label", "--llm", "m", "--parallel", "0"], "--parallel 0 is too small"),
        (["label", "--llm", "m", "--base-url", "there"], "the base URL is not an http or https address"),
        (["label", "--llm", "m", "--examples", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (
            ["label", "--llm", "m", "--api-key", "wrong-key-1"],
            "the API key was refused (401: Incorrect API key provided",
        ),
        (["label", "--llm", " "], "the name of the language model is empty"),
        (["votes"], "run headspan ccs"),
        (["agreement"], "run headspan label"),
        (["compare"], "run headspan ccs"),
    ],
)
def test_a_wrong_value_of_a_flag_gives_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, path: str, chat: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, arguments[0], path, *arguments[1:])
    assert sentence in said
    assert "wrong-key-1" not in said


def test_unknown_models_and_heads_are_named(path: str, chat: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    chat.models = ("m", "even")
    assert "has no model 'n' for this key (404: The model `n` does not exist)" in refused(
        capsys, "label", path, "--llm", "n"
    )
    run(capsys, "label", path, "--llm", "m")
    run(capsys, "ccs", path, "--judge", "even")
    for head in ("L0.H9", "L5.H0", "0.1"):
        assert f"--head {head}: there is no such head; write L0.H0, for example, with layers" in refused(
            capsys, "votes", path, "--head", head
        )


def test_no_key_for_openai_is_refused(
    path: str, chat: ChatServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "api.openai.com/v1: no API key; set OPENAI_API_KEY" in refused(capsys, "label", path, "--llm", "gpt-4o")


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_keeps_its_answers_and_continues(path: str, chat: ChatServer) -> None:
    chat.delay_seconds = 0.3
    command = [*HEADSPAN, "label", path, "--llm", "m", "--parallel", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while len(chat.requests) < 3:
        assert process.poll() is None, "the run ended before it could be interrupted"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=30) == 130
    assert errors.splitlines()[-1] == "headspan: interrupted; answers are kept; run the same command to continue"
    asked = len(chat.requests)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # The third answer may have arrived before the interrupt.
    assert re.search("[23] answered before, [23] to ask", done.stderr)
    assert len(chat.requests) <= asked + 3


def test_the_client_is_imported_only_when_a_model_is_asked(path: str, chat: ChatServer) -> None:
    shown = (
        "import sys; from headspan.cli.main import main; code = main(sys.argv[1:]); "
        "print('openai' in sys.modules, file=sys.stderr); sys.exit(code)"
    )
    for words, imported in ((["runs", path], "False"), (["label", path, "--llm", "m"], "True")):
        command = [sys.executable, "-c", shown, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == imported
    assert failures_without(("openai",), ["headspan", "headspan.cli.main"]) == {}


def test_no_output_and_no_file_contains_the_key(
    path: str, chat: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = run(capsys, "label", path, "--llm", "m")
    out += err + "".join(run(capsys, "ccs", path, "--judge", "kind", "--judge", "low"))
    chat.key = "another"
    out += refused(capsys, "label", path, "--llm", "other")
    assert KEY not in out
    written = {**relative_files(Path(path)), **relative_files(tmp_path / "cache")}
    assert len(written) > 20
    assert not any(KEY.encode() in content for content in written.values())
