"""Files of texts: line ends, lines of column names, and the errors for files of other formats."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headspan.errors import TextsError
from headspan.texts.pool import Pool, read_pool
from headspan.texts.pool_file import read_lines

# Separators of Unicode and ASCII that do not end a line of a file.
WITHIN = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
TEXTS = st.text(st.sampled_from("ab ,;'é犬" + WITHIN), max_size=12).map(lambda text: f"a{text}z")


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans())
def test_only_line_feeds_and_carriage_returns_end_a_line(
    texts: list[str], end: str, annotated: bool, marked: bool
) -> None:
    rows = [(text, f"c{text}c") if annotated else (text,) for text in texts]
    content = end.join("\t".join(row) for row in rows) + end
    assert read_lines(content.encode("utf-8-sig" if marked else "utf-8"), "pool.txt") == rows


@pytest.mark.parametrize(
    "names",
    ["text\tconcept", "Description\tLabel", '"text"\t"category"', "# caption\tconcepts", "sentences\tclass_name"],
)
@pytest.mark.parametrize("name", ["pool.tsv", "pool.txt"])
def test_a_line_of_column_names_is_not_a_text(names: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(f"{names}\na dog\tanimals\nred\tcolours\n", encoding="utf-8")
    pool = read_pool(path)
    assert pool.texts == ("a dog", "red")
    assert pool.concepts == ("animals", "colours")


def test_a_first_text_that_looks_like_a_column_name_is_kept_in_txt_files(tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_text("text\nlogo\n")
    assert read_pool(tmp_path / "pool.txt").texts == ("text", "logo")
    (tmp_path / "pool.tsv").write_text("text\nlogo\n")
    assert read_pool(tmp_path / "pool.tsv").texts == ("logo",)
    (tmp_path / "pair.tsv").write_text("a text\tlabel\nlogo\tlabel\n")
    assert read_pool(tmp_path / "pair.tsv").texts == ("a text", "logo")


ROWS = [("a dog, wet", "animals"), ("a red car", "colours")]


def as_csv(delimiter: str, header: bool, quoting: int = csv.QUOTE_MINIMAL) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("text", "concept"), *ROWS] if header else ROWS)
    return buffer.getvalue().encode()


def as_parquet() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a dog"]}), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("pool.csv", as_csv(",", True), "is CSV, by its lines as in 'text,concept'; give a UTF-8 text file"),
        ("pool.txt", as_csv(";", True), "is CSV, by its lines as in 'text;concept'"),
        ("pool.txt", b"id,caption\n1,a dog\n", "is CSV, by its lines as in 'id,caption'"),
        ("pool.txt", as_csv(",", False, csv.QUOTE_ALL), "is CSV, by its lines as in"),
        ("pool.txt", b"image,caption\na.jpg,a dog\n", "is CSV, by its lines as in 'image,caption'"),
        ("pool.txt", b"text|concept\na dog|animals\n", "is CSV, by its lines as in 'text|concept'"),
        ("pool.txt", b'"a dog, wet",animals\na red car,colours\n', "is CSV, by its lines as in"),
        ("pool.tsv", b'"text"\t"concept"\n"a dog"\t"animals"\n', "is CSV, by its lines as in"),
        ("pool.tsv", b"image_id\tcaption\n1\ta dog\n", "names the columns image_id, caption; keep two"),
        ("pool.tsv", b"filename\tcaption\na.jpg\ta dog\n", "names the columns filename, caption; keep two"),
        ("pool.tsv", b"prompt\ttype\na dog\tanimals\n", "names the columns prompt, type; keep two"),
        ("pool.tsv", b"english\tconcept\na dog\tanimals\n", "names the columns english, concept; keep two"),
        ("pool.md", b"| text | concept |\n|---|---|\n| a dog | animals |\n", "is a table of Markdown"),
        ("pool.json", b'["a dog",\n "a cat",\n]\n', "is JSON or similar, by its brackets"),
        ("pool.rtf", b"{\\rtf1 a dog}", "is RTF"),
        ("pool.htm", b"<div>a dog</div>\n", "is XML or HTML"),
        ("pool.CSV", b"a dog\na cat\n", "is CSV, by its name"),
        ("pool.tsv", b"id\ttext\tconcept\n1\ta dog\tanimals\n", "names the columns id, text, concept; keep two"),
        ("pool.tsv", b"concept\ttext\nanimals\ta dog\n", "names the columns concept, text; keep two"),
        ("pool.tsv", b"text\tconcept\n", "contains no texts"),
        ("pool.json", json.dumps([text for text, _ in ROWS]).encode(), "is JSON; give"),
        ("pool.txt", json.dumps({"texts": ["a dog"]}, indent=1).encode(), "is JSON; give"),
        ("pool.jsonl", b'{"text": "a dog"}\n{"text": "a cat"}\n', "is JSON, line by line; give"),
        ("pool.txt", "a dog\n".encode("utf-16"), "is UTF-16 or UTF-32, by its first bytes; save it as UTF-8"),
        ("pool.txt", "a dog\n".encode("utf-32"), "is UTF-16 or UTF-32"),
        ("pool.txt", "a dog\n".encode("utf-16-le"), "contains zero bytes, like UTF-16"),
        ("pool.txt", "Städte\n".encode("latin-1"), "byte 2 is not UTF-8; save the file as UTF-8"),
        ("pool.parquet", as_parquet(), "is Parquet, by its first bytes"),
        ("pool.txt.gz", gzip.compress(b"a dog\n", mtime=0), "is gzip, by its first bytes"),
        ("pool.xlsx", b"PK\x03\x04rest", "is a zip archive or spreadsheet"),
        ("pool.html", b"<!DOCTYPE html><p>a dog", "is XML or HTML"),
        ("pool.txt", b"\n \n\t\n", "contains no texts"),
    ],
)
def test_files_of_other_formats_are_refused_by_name(name: str, content: bytes, found: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TextsError, match=rf"^{re.escape(str(path))}: .*{re.escape(found)}"):
        read_pool(path)


@pytest.mark.parametrize(
    "line", ["[a dog]", "{curly} hair", "red, green, blue", 'a "quoted" word', "text, and more", "[1"]
)
def test_texts_that_only_resemble_other_formats_are_accepted(line: str, tmp_path: Path) -> None:
    (tmp_path / "pool.txt").write_text(f"{line}\na cat\n")
    assert read_pool(tmp_path / "pool.txt").texts == (line, "a cat")


@pytest.mark.parametrize("text", ["half \ud800", "a cat\na dog", "a cat\tanimals", "a cat\r"])
def test_a_text_that_is_not_one_line_is_refused(text: str) -> None:
    # Otherwise different lists of texts would share a checksum.
    with pytest.raises(TextsError, match=r"pool list: the text .* contains .*; give each text as one line"):
        read_pool(["a dog", text])
    with pytest.raises(TextsError, match=r"pool p: the text .* contains .*; give each text as one line"):
        Pool("p", ("a dog",), (text,))


def test_invisible_characters_around_a_text_are_removed() -> None:
    assert read_lines("a dog\n\ufeffa cat\n\u200b\n".encode(), "pool.txt") == [("a dog",), ("a cat",)]
