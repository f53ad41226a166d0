"""Every table that a command prints as CSV, JSON and Parquet, whole or for some heads."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import headspan as hs
from headspan.cli.exports import Table
from headspan.cli.main import main
from headspan.concepts.votes import read_votes
from headspan.errors import StoreError
from headspan.frames import Tabular
from tests.conftest import ToyRun
from tests.engine.test_query_image import refuse_the_model

POOL = hs.Pool(
    "pool",
    tuple(f'a "{thing}", in {place}' for thing in ("cat", "dög", "car", "tree") for place in ("rain", "snow", "fog")),
    ("rain", "snow", "fog") * 4,
)


@pytest.fixture(scope="module")
def path(toy_run: ToyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the toy store with spans, labels and scores."""
    path = Path(shutil.copytree(toy_run.path, tmp_path_factory.mktemp("exports") / "toy.zarr"))
    store = hs.open(path)
    spans = hs.textspan(store, POOL, texts_per_head=5, save=True)
    labels = hs.concepts.label_heads(store, spans, save=True)
    hs.concepts.concept_consistency(store, labels, save=True)
    return path


def in_python(command: str, store: hs.Store) -> Any:
    """The result whose table the command prints."""
    return {
        "label": lambda: of_heads(store, labels_beside_chance(store)),
        "ccs": lambda: of_heads(store, hs.concepts.concept_consistency(store)),
        "ccs --by-layer": lambda: hs.concepts.concept_consistency(store).by_layer(),
        "votes": lambda: of_heads(store, read_votes(store)),
        "compare": lambda: hs.concepts.compare([store]),
        "info": lambda: hs.info(store),
        "info --heads": lambda: store.magnitudes(),
        "runs": lambda: hs.runs(store),
    }[command]()


def labels_beside_chance(store: hs.Store) -> Table:
    columns = hs.concepts.concept_consistency(store)._columns()
    return Table({name: values for name, values in columns.items() if name not in ("score", "group")})


def of_heads(store: hs.Store, table: Tabular) -> Table:
    """The table with the magnitude of each row's head."""
    columns = dict(table._columns())
    magnitudes = [store.magnitudes().of(*head) for head in zip(columns["layer"], columns["head"], strict=True)]
    for name, values in zip(("variance_share", "squared_length_share"), zip(*magnitudes, strict=True), strict=True):
        columns[name] = values
    return Table(columns)


def as_text(value: Any) -> str:
    if value is None or value != value:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def null_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


@pytest.mark.parametrize(
    "command", ["label", "ccs", "ccs --by-layer", "votes", "compare", "info", "info --heads", "runs"]
)
def test_a_command_writes_the_table_of_its_result_in_three_formats(
    command: str, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {name: list(values) for name, values in in_python(command, hs.open(path))._columns().items()}
    files = {name: tmp_path / f"table.{name}" for name in ("csv", "json", "parquet")}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    assert main([*command.split(), str(path), *flags]) == 0
    said = capsys.readouterr()
    assert said.out
    assert all(f"table written to {file}\n" in said.err for file in files.values())
    rows = [dict(zip(wanted, row, strict=True)) for row in zip(*wanted.values(), strict=True)]
    assert rows
    with files["csv"].open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: as_text(value) for name, value in row.items()} for row in rows]
    known = [{name: null_for_nan(value) for name, value in row.items()} for row in rows]
    assert json.loads(files["json"].read_text(encoding="utf-8")) == known
    assert pq.read_table(files["parquet"]).to_pylist() == known
    # Nothing but the table is printed.
    for flag, text in (("--csv", files["csv"]), ("--json", files["json"])):
        assert main([*command.split(), str(path), flag, "-"]) == 0
        assert capsys.readouterr().out == text.read_text(encoding="utf-8")


def test_the_table_by_layer_counts_the_heads_of_each_layer_and_is_for_a_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = hs.concepts.concept_consistency(hs.open(path))
    columns = found.by_layer()._columns()
    assert columns["layer"] == [None, 0, 1, 2]
    assert columns["heads"] == [9, 3, 3, 3]
    for place in range(3):
        scores = found.scores[place].tolist()
        assert columns["high"][1 + place] == scores.count(5)
        assert columns["ccs_at_2"][1 + place] == scores.count(2) / 3
    assert columns["beat_chance_by_chance"][0] == pytest.approx(sum(columns["beat_chance_by_chance"][1:]))
    for flags, why in (
        (["--by-layer"], "--by-layer: chooses the table for a file; name the file with --csv, --json or --parquet"),
        (["--by-layer", "--csv", "-", "--head", "L0.H1"], "--by-layer and --head: a table by layer has no heads"),
    ):
        assert main(["ccs", str(path), *flags]) == 2
        assert why in capsys.readouterr().err


def test_heads_that_are_named_are_the_only_ones_printed_and_exported(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = tmp_path / "pool.tsv"
    pool.write_text(
        "".join(f"{text}\t{concept}\n" for text, concept in zip(POOL.texts, POOL.concepts or (), strict=True)),
        encoding="utf-8",
    )
    heads = ["--head", "L2.H1", "--head", "L0.H2", "--head", "L2.H1"]
    commands: dict[str, list[str]] = {
        "textspan": ["textspan", str(path), "--texts", str(pool), "--texts-per-head", "5"],
        **{name: [name, str(path)] for name in ("label", "ccs", "votes")},
    }
    for command in commands.values():
        assert main([*command, *heads]) == 0
        shown = [
            line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("L0.", "L1.", "L2."))
        ]
        assert shown == ["L0.H2", "L2.H1"]
        assert main([*command, *heads, "--csv", "-"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert {(row["layer"], row["head"]) for row in rows} == {("0", "2"), ("2", "1")}
        for wrong in ("L3.H0", "L0.H3", "2.1", "L-1.H0", "L٢.H0", ""):
            assert main([*command, "--head", wrong]) == 2
            assert capsys.readouterr().err.endswith(
                f"headspan: --head {wrong}: there is no such head; write L0.H0, for example, with layers 0-2 "
                "and heads 0 to 2\n"
            )
    # A head that is not described cannot be shown.
    assert main([*commands["textspan"], "--layers", "1", "--run", "one", "--head", "L0.H0"]) == 2
    assert "write L1.H0, for example, with layers 1 and" in capsys.readouterr().err
    assert [each.name for each in hs.runs(path) if each.kind == "textspan"] == ["pool"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--csv", "-", "--json", "-"], "--csv - and --json -: only one table fits on standard output"),
        (["--parquet", "-"], "--parquet -: Parquet cannot be printed; name a file, or print CSV with --csv -"),
    ],
)
def test_tables_that_cannot_be_printed_are_refused_before_any_work(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("textspan", "label", "ccs", "votes", "agreement", "compare", "info", "runs", "models"):
        assert main([command, *([] if command == "models" else [str(tmp_path / "nothing.zarr")]), *flags]) == 2
        assert capsys.readouterr().err.startswith(f"headspan: {sentence}")


def test_flags_that_exclude_each_other_are_refused(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(path), "--remove", "pool", "--csv", "-"]) == 2
    assert "--remove lists no runs, so there is no table to write" in capsys.readouterr().err
    assert hs.runs(path)
    assert main(["agreement", str(path), "--write", "sheet.csv", "--csv", "-"]) == 2
    assert "--write measures nothing, so there is no table to write" in capsys.readouterr().err
    assert main(["info", str(path), "--heads", "--notes"]) == 2
    assert "--heads and --notes: give each in a command of its own" in capsys.readouterr().err


def test_a_table_that_cannot_be_written_is_one_sentence_and_an_earlier_file_stays(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert main(["label", str(path), "--csv", str(tmp_path / "folder.csv")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"headspan: {tmp_path / 'folder.csv'}: the table cannot be written there (it is a folder); name a file"
    )
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"cannot be written there \(.*file is a file\); make the folder, or name"):
        Table({"a": [1]}).to_json(tmp_path / "file" / "below.json")
    for name in ("", ".", "/"):
        with pytest.raises(StoreError, match=r"the table cannot be written there \(it is no file's name\)"):
            Table({"a": [1]}).to_csv(name)
    with pytest.raises(StoreError):
        Table({"a": [1]}).to_parquet(tmp_path / "folder.csv")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("textspan", ("--texts", "world", "--run", "new", "--csv")),
        ("label", ("--json",)),
        ("info", ("--parquet",)),
        ("report", ("--out",)),
        ("segment", ("--image", "1", "--text", "never embedded", "--out")),
        ("contrast", ("--image", "1", "--text", "never embedded", "--against", "neither", "--out")),
        ("nearest", ("--text", "never embedded", "--out")),
        ("agreement", ("--write",)),
        ("export", ("--format", "npy", "--to")),
        ("export", ("--atlas", "--to")),
        ("describe train", ("--language-model", "none", "--out", "adapter", "--plot")),
        ("features show", ("--out",)),
        ("pool", ("--llm", "none", "--ask", "texts", "--count", "1", "--dry-run", "--out")),
    ],
)
def test_no_command_makes_the_mistyped_folder_of_a_file(
    path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    flags: tuple[str, ...],
) -> None:
    refuse_the_model(monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = Path("~/typo") / {"--plot": "a.png", "--to": "a.parquet"}.get(flags[-1], "a")
    store = [] if command == "pool" else [str(path)]
    assert main([*command.split(), *store, *flags, str(file)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.endswith(
        f"cannot be written there (there is no folder {tmp_path / 'typo'}); make the folder, or name another file"
    )
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_home_folder_may_be_named_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Table({"a": [1]}).to_csv("~/table.csv")
    assert (tmp_path / "table.csv").read_text() == "a\n1\n"


def test_links_and_pipes_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("earlier")
    (tmp_path / "link.csv").symlink_to("real.csv")
    Table({"a": [1]}).to_csv(tmp_path / "link.csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "a\n1\n"
    os.mkfifo(tmp_path / "pipe")
    reading = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    Table({"a": [2]}).to_csv(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert os.read(reading, 100) == b"a\n2\n"
    os.close(reading)


def test_awkward_values_survive_in_every_format(tmp_path: Path) -> None:
    columns = {
        "text": ['a "b", c', "two\nlines\ttab", "naïve 猫", None, ""],
        "number": [1.5, float("nan"), None, -0.1, 1e-300],
        "flag": [True, False, None, True, False],
        "nothing": [None] * 5,
        # Half of a surrogate pair, as in the name of a file that is not UTF-8.
        "name": ["caf\udce9", "x", "y", "z", "w"],
    }
    table = Table(columns)
    table.to_csv(tmp_path / "t.csv")
    table.to_json(tmp_path / "t.json")
    table.to_parquet(tmp_path / "t.parquet")
    wanted = {name: [null_for_nan(value) for value in values] for name, values in columns.items()}
    wanted["name"][0] = "caf\\udce9"
    rows = [dict(zip(wanted, row, strict=True)) for row in zip(*wanted.values(), strict=True)]
    assert json.loads((tmp_path / "t.json").read_text(encoding="utf-8")) == rows
    assert pq.read_table(tmp_path / "t.parquet").to_pylist() == rows
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{name: as_text(value) for name, value in row.items()} for row in rows]
    assert Table({}).as_json() == "[]\n"
    assert Table({"a": [], "b": []}).as_csv() == "a,b\n"
