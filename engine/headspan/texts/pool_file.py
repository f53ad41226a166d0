"""Parse a file of texts: one text per line, or `text<TAB>concept`, with or without column names.

Only `\\n`, `\\r\\n` and `\\r` end a line. Other separators of Unicode and ASCII are part of a text. Files of other
formats (CSV, JSON, Parquet, …) are refused, and the error names the format.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence

from headspan.errors import TextsError

_WANTED = "give a UTF-8 text file with one text per line, or lines of text<TAB>concept"
# The first bytes of files of other formats.
_BEGINNINGS = {
    b"PAR1": "Parquet",
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "a zip archive or spreadsheet",
    b"%PDF": "PDF",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3": "a database",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
}
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
# Common names of the two columns, in lower case and singular.
_TEXT_NAMES = {"text", "description", "caption", "prompt", "sentence", "phrase"}
_CONCEPT_NAMES = {"concept", "category", "label", "class", "class name", "topic", "group", "property", "factor"}
_NAMES = _TEXT_NAMES | _CONCEPT_NAMES
# Invisible characters that are removed from the ends of a text: byte order marks and zero-width spaces.
_UNSEEN = "\ufeff\u200b"


def read_lines(content: bytes, source: str) -> list[tuple[str, ...]]:
    """Parse a file's content into rows of one cell (text) or two (text, concept). Empty lines are skipped.

    `source` names the file in errors. Raises TextsError if the file has another format, contains no text, or if only
    some of its lines have a concept.
    """
    text = _decoded(content, source)
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if _bare(line)]
    if lines and (kind := _kind(text, lines, source)):
        raise TextsError(f"{source}: is {kind}; {_WANTED}")
    rows = [tuple(_bare(cell) for cell in line.split("\t")) for line in lines]
    if rows and _is_header(rows[0], source):
        del rows[0], lines[0]
    if not rows:
        raise TextsError(f"{source}: contains no texts; write one per line")
    if any(len(row) != 1 for row in rows):
        for number, row in enumerate(rows, start=1):
            if len(row) != 2 or not all(row):
                raise TextsError(
                    f"{source}: text {number} ({lines[number - 1][:60]!r}) is not text<TAB>concept, but other "
                    "lines are; write a concept on every line or on none"
                )
    return rows


def _decoded(content: bytes, source: str) -> str:
    if content.startswith(_UTF_16_OR_32):
        raise TextsError(f"{source}: is UTF-16 or UTF-32, by its first bytes; save it as UTF-8")
    for beginning, kind in _BEGINNINGS.items():
        if content.startswith(beginning):
            raise TextsError(f"{source}: is {kind}, by its first bytes; {_WANTED}")
    if b"\0" in content:
        raise TextsError(f"{source}: contains zero bytes, like UTF-16 and binary files; {_WANTED}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextsError(f"{source}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _kind(text: str, lines: Sequence[str], source: str) -> str | None:
    """The other format that a text file appears to have; None if it may be lines of texts."""
    if _holds_json(text):
        return "JSON"
    if _holds_json(lines[0]):
        return "JSON, line by line"
    bare = text.strip()
    if bare[0] + bare[-1] in ("{}", "[]"):
        return "RTF" if bare.startswith("{\\rtf") else "JSON or similar, by its brackets"
    if re.match(r"<(\?xml|!doctype|html)\b", bare, re.IGNORECASE) or (bare[0] == "<" and bare[-1] == ">"):
        return "XML or HTML"
    if len(lines) > 1 and all(line.strip()[0] + line.strip()[-1] == "||" for line in lines):
        return "a table of Markdown"
    if any(_is_csv(lines, comma) for comma in ",;|\t"):
        return f"CSV, by its lines as in {lines[0][:60]!r}"
    if source.lower().endswith(".csv"):
        return "CSV, by its name"
    return None


def _is_csv(lines: Sequence[str], comma: str) -> bool:
    """Whether every line has the same number of cells, split at `comma`, with quotes or column names as in CSV."""
    try:
        # A quoted cell may contain the comma.
        rows = list(csv.reader(lines, delimiter=comma, strict=True))
    except csv.Error:
        return False
    if len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return False
    if comma == "\t":
        # Lines of text<TAB>concept are valid, and a text may contain quotes; only CSV quotes every cell.
        return all(re.fullmatch(r'"[^"]*"(\t"[^"]*")+', line.strip()) for line in lines)
    named = any(_name(cell) in _NAMES for cell in rows[0]) and all(len(cell.split()) < 3 for cell in rows[0])
    quoted = any(re.match(rf'"[^"]*"\s*{re.escape(comma)}', line.strip()) for line in lines)
    return named or (quoted and len(rows) > 1)


def _holds_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_header(row: Sequence[str], source: str) -> bool:
    """Whether a line names the columns text and concept. Raises TextsError if it names other or swapped columns."""
    names = [_name(cell) for cell in row]
    if len(names) == 1:
        # In a .txt file, "text" may be a text.
        return names[0] in _TEXT_NAMES and source.lower().endswith(".tsv")
    # A concept may be called "label", but nobody describes an image by "caption", or calls a concept "concept".
    if not (_TEXT_NAMES & set(names) or "concept" in names):
        return False
    if len(names) == 2 and names[0] in _TEXT_NAMES and names[1] in _CONCEPT_NAMES:
        return True
    raise TextsError(
        f"{source}: its first line names the columns {', '.join(row)}; keep two: the text, then its concept"
    )


def _bare(text: str) -> str:
    """`text` without white space and invisible characters at its ends."""
    return text.strip().strip(_UNSEEN).strip()


def _name(cell: str) -> str:
    """A column's name as it is spelled in `_NAMES`."""
    name = re.sub(r"[\W_]+", " ", cell).strip().casefold()
    for plural, singular in (("ies", "y"), ("classes", "class"), ("s", "")):
        if name.endswith(plural) and name.removesuffix(plural) + singular in _NAMES:
            return name.removesuffix(plural) + singular
    return name
