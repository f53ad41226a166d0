"""Sheets for people's votes: CSV files that survive the changes that spreadsheets make to them.

They are UTF-8 with a byte order mark, from which spreadsheets recognise UTF-8. Cells that a spreadsheet would evaluate
as a formula are quoted. Reading accepts commas, semicolons and tabs, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from headspan.errors import SettingsError, TextsError
from headspan.io.files import write_atomically
from headspan.user_paths import file_to_write

# A spreadsheet evaluates a cell that begins with one of these as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def new_sheet(path: str | Path, count: int) -> Path:
    """The path of a sheet to write, with `~` replaced.

    Raises SettingsError if it exists, since it may contain votes, or if fewer than one text is wanted; and StoreError
    if there is no folder for it.
    """
    if count < 1:
        raise SettingsError(f"--count {count} is too small; give at least 1")
    found = file_to_write(path, "sheet")
    if found.exists():
        raise SettingsError(f"{path}: already exists and may contain votes; choose another --write")
    return found


def write_sheet(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a sheet. Raises StoreError if it cannot be written."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(value) for value in row])
    write_atomically(path, [buffer.getvalue().encode("utf-8-sig")])


def read_sheet(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a sheet, each with its line in the file. Raises TextsError if it is not a sheet of these columns."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TextsError(f"{path}: cannot be read ({error.strerror}); give a file that --write wrote") from error
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: byte {error.start} is not UTF-8; save the file as CSV in UTF-8") from error
    # In some countries, spreadsheets separate cells by semicolons.
    delimiter = max(",;\t", key=content.split("\n", 1)[0].count)
    try:
        lines: Sequence[dict[str, str]] = list(csv.DictReader(io.StringIO(content), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise TextsError(f"{path}: is not CSV ({error}); give a file that --write wrote") from error
    for line, row in enumerate(lines, start=2):
        if any(row.get(name) is None for name in columns):
            raise TextsError(f"{path}, line {line}: lacks one of the columns {', '.join(columns)}; restore it")
    return list(enumerate(lines, start=2))


def one_line(text: str) -> str:
    """`text` as a cell holds it: every run of white space is a blank."""
    return " ".join(text.split())


def uncell(value: str) -> str:
    """The text of a cell, as `one_line` gives it."""
    return one_line(value.removeprefix("'"))


def _cell(value: str) -> str:
    return f"'{value}" if value.startswith((*_FORMULA, "'")) else value
