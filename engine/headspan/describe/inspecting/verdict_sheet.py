"""Sheets of descriptions on which a person writes verdicts, in a spreadsheet or an editor.

Each text of a class is one line. Lines are drawn at random and shuffled, so that each is judged on its own. The sheet
shows no rewards and no other votes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headspan.concepts.sheets import new_sheet, one_line, read_sheet, uncell, write_sheet
from headspan.describe.descriptions.result import SPURIOUS, VERDICTS, Descriptions
from headspan.describe.inspecting.ballot import Votes, described_texts
from headspan.describe.inspecting.verdict import Described, Verdict
from headspan.errors import TextsError

COLUMNS = ("class", "text", "verdict", "attribute")


def write_verdict_sheet(descriptions: Descriptions, path: str | Path, count: int = 100, seed: int = 0) -> int:
    """Write up to `count` descriptions to `path`; returns how many were written.

    The person fills the column `verdict` with spurious, visual or non-visual, and may name an attribute. `seed` decides
    which are drawn. Raises StoreError if `path` cannot be written, and SettingsError if `path` exists, since it may
    contain votes.
    """
    path = new_sheet(path, count)
    lines = [*_lines(descriptions)]
    drawn = np.random.default_rng(seed).permutation(len(lines))[:count].tolist()
    write_sheet(path, COLUMNS, ((*lines[place], "", "") for place in drawn))
    return len(drawn)


def read_verdict_sheet(descriptions: Descriptions, path: str | Path) -> Votes:
    """Read a person's votes from a filled sheet; descriptions without a verdict are left out.

    Raises TextsError if the file is not a sheet of verdicts, if a verdict is none of VERDICTS, if none is filled in, or
    if a text is not among the descriptions.
    """
    path, lines = Path(path), _lines(descriptions)
    votes: dict[Described, Verdict] = {}
    seen = set()
    for line, row in read_sheet(path, COLUMNS):
        where, shown = f"{path}, line {line}", (uncell(row["class"]), uncell(row["text"]))
        if shown not in lines:
            raise TextsError(f"{where}: its text is not among the descriptions of its class; write a new sheet with "
                             "--write")  # fmt: skip
        if shown in seen:
            raise TextsError(f"{where}: repeats the text of another line; keep one of them")
        seen.add(shown)
        word = row["verdict"].strip().lower()
        if word and word not in VERDICTS:
            raise TextsError(
                f"{where}: the verdict is {word[:40]!r}; write {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}"
            )
        if word:
            number = VERDICTS.index(word)
            attribute = "" if number == SPURIOUS else uncell(row["attribute"]).lower()
            votes |= dict.fromkeys(lines[shown], Verdict(number, attribute))
    if not votes:
        raise TextsError(f"{path}: no verdict is filled in; write {', '.join(VERDICTS)} into the column verdict")
    return votes


def _lines(descriptions: Descriptions) -> dict[tuple[str, str], list[Described]]:
    """The class and the text of every line, and the texts of that class that look the same on one line."""
    lines: dict[tuple[str, str], list[Described]] = {}
    for each in dict.fromkeys(described_texts(descriptions)):
        lines.setdefault((one_line(each.class_name), one_line(each.text)), []).append(each)
    return lines
