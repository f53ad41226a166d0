"""Vote sheets, and the changes that spreadsheets and people make to them."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headspan.concepts.consistency import NO_VOTE
from headspan.concepts.human_votes import COLUMNS, read_vote_sheet, write_vote_sheet
from headspan.concepts.labels import Labels
from headspan.errors import SettingsError, TextsError
from headspan.spans.result import HeadSpans
from headspan.texts.pool import Pool

TEXTS = (*(f"text {place}" for place in range(5)), "=1+1", '"quoted", with; commas', "'tis", "-dash", "ü\u2028x")
SPANS = HeadSpans(
    "hand",
    Pool("hand", TEXTS),
    (8, 9),
    np.array([[[0, 1, 2, 3, 4, 5], [5, 6, 7, 8, 9, 0]], [[9, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5]]]),
    np.zeros((2, 2, 6)),
    images=2,
)
LABELS = Labels("hand", "by hand", (8, 9), (("numbers", "odd"), ("umlauts", None)), None)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def fill(path: Path, vote: Callable[[dict[str, str]], str], delimiter: str = ",", encoding: str = "utf-8-sig") -> None:
    """Fill a vote sheet as a person does in a spreadsheet."""
    found = rows(path)
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter=delimiter)
        writer.writeheader()
        writer.writerows({**row, "associated": vote(row)} for row in found)


def test_a_sheet_has_the_texts_of_whole_heads_shuffled_and_without_votes(tmp_path: Path) -> None:
    path = tmp_path / "spans.csv"
    assert write_vote_sheet(SPANS, LABELS, path, count=100) == 11
    found = rows(path)
    assert Counter((row["layer"], row["head"]) for row in found) == {("8", "0"): 5, ("8", "1"): 5, ("9", "0"): 1}
    assert [(row["head"], row["number"]) for row in found] != sorted((row["head"], row["number"]) for row in found)
    assert {row["associated"] for row in found} == {""}
    by_place = {(row["layer"], row["head"], row["number"]): (row["label"], row["text"]) for row in found}
    assert by_place["8", "0", "3"] == ("numbers", "text 2")
    # A spreadsheet would evaluate it as a formula.
    assert by_place["8", "1", "1"] == ("odd", "'=1+1")


def test_the_seed_decides_which_texts_are_drawn(tmp_path: Path) -> None:
    for number, seed in enumerate((0, 0, 1, 2, 3)):
        assert write_vote_sheet(SPANS, LABELS, tmp_path / f"{number}.csv", count=5, seed=seed) == 5
    first, again, *others = (rows(tmp_path / f"{number}.csv") for number in range(5))
    assert first == again
    assert any(other != first for other in others)
    # One whole head before the texts of others.
    assert max(Counter((row["layer"], row["head"]) for row in first).values()) >= 4


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_votes_are_read_from_the_formats_of_spreadsheets(delimiter: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "spans.csv"
    write_vote_sheet(SPANS, LABELS, path)
    fill(path, lambda row: {"0": "1", "1": "0.0"}[row["head"]], delimiter, encoding)
    votes = read_vote_sheet(SPANS, LABELS, path)
    assert votes.tolist() == [[[1] * 5, [0] * 5], [[1] + [NO_VOTE] * 4, [NO_VOTE] * 5]]


def test_an_empty_cell_is_not_a_vote(tmp_path: Path) -> None:
    path = tmp_path / "spans.csv"
    write_vote_sheet(SPANS, LABELS, path)
    fill(path, lambda row: " 1 " if row["text"] == "text 1" else "")
    votes = read_vote_sheet(SPANS, LABELS, path)
    assert votes[0, 0].tolist() == [NO_VOTE, 1, NO_VOTE, NO_VOTE, NO_VOTE]
    assert (votes != NO_VOTE).sum() == 1


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "spans.csv"
    path.write_text("work of hours")
    with pytest.raises(SettingsError, match=r"spans\.csv: already exists and may contain votes; choose another"):
        write_vote_sheet(SPANS, LABELS, path)
    assert path.read_text() == "work of hours"
    with pytest.raises(SettingsError, match="--count 0 is too small"):
        write_vote_sheet(SPANS, LABELS, tmp_path / "new.csv", count=0)
    nothing = Labels("hand", "by hand", (8, 9), ((None, None), (None, None)), None)
    with pytest.raises(TextsError, match="no head is labelled, so there is nothing to judge"):
        write_vote_sheet(SPANS, nothing, tmp_path / "new.csv")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda text: text, "no vote is filled in; write 1 or 0 into the column associated"),
        (lambda text: text.replace("text 3,", "text 3,yes"), "associated is 'yes'; write 1 if"),
        (lambda text: text.replace("text 3,", "text 33,1"), "its label or text differs from the store's"),
        (lambda text: text.replace("8,0,1,", "7,0,1,"), "its label or text differs from the store's"),
        (lambda text: text.replace("8,0,1,", "8,zero,1,"), "layer, head and number must be whole numbers"),
        (lambda text: text + '8,0,1,numbers,text 0,1\r\n', "repeats the text of another line; keep one of them"),
        (
            lambda text: text.replace("associated", "mine"),
            "line 2: lacks one of the columns layer, head, number, label, text, associated; restore it",
        ),
        (lambda text: text + "8,0\r\n", "line 13: lacks one of the columns"),
        (lambda text: text + '"open', "is not CSV"),
        (lambda text: "", "no vote is filled in"),
    ],
)  # fmt: skip
def test_an_invalid_sheet_is_refused_with_the_line_and_what_to_do(
    change: Callable[[str], str], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "spans.csv"
    write_vote_sheet(SPANS, LABELS, path)
    path.write_bytes(change(path.read_bytes().decode()).encode())
    with pytest.raises(TextsError) as caught:
        read_vote_sheet(SPANS, LABELS, path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TextsError, match=r"nowhere\.csv: cannot be read \(No such file"):
        read_vote_sheet(SPANS, LABELS, tmp_path / "nowhere.csv")
    (tmp_path / "latin.csv").write_bytes(b"\xfc")
    with pytest.raises(TextsError, match="byte 0 is not UTF-8; save the file as CSV in UTF-8"):
        read_vote_sheet(SPANS, LABELS, tmp_path / "latin.csv")
