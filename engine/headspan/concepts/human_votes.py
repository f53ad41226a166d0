"""Spans for a person to judge: written to a CSV file that a spreadsheet opens, and read back.

Whole heads are drawn, so that scores can be compared as well, and their texts are shuffled, so that each is judged
by itself. The file shows no judge's vote.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from headspan.concepts.ccs import NO_VOTE
from headspan.concepts.labels import LABELLED_TEXTS, Labels, first_texts
from headspan.errors import SettingsError, TextsError
from headspan.io.local import write_atomically
from headspan.spans.result import HeadSpans

COLUMNS = ("layer", "head", "number", "label", "text", "associated")
# A spreadsheet would take such a cell for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_spans(spans: HeadSpans, labels: Labels, path: str | Path, count: int = 100, seed: int = 0) -> int:
    """Write `count` texts with their heads' labels to `path`, `associated` left empty; returns how many there are.

    Fewer where fewer are labelled. Raises TextsError where no head is, StoreError where `path` cannot be
    written, SettingsError where it is there already: a person's work may be in it.
    """
    path = Path(path)
    if count < 1:
        raise SettingsError(f"--count {count} is too small; give at least 1")
    if path.exists():
        raise SettingsError(f"{path}: is there already and may hold somebody's votes; give another --write")
    rows = _rows(spans, labels)
    if not rows:
        raise TextsError(f"labels of run {labels.run!r}: no head is labelled, so there is nothing to judge")
    random = np.random.default_rng(seed)
    heads = list(dict.fromkeys(row[:2] for row in rows))
    order = {heads[place]: rank for rank, place in enumerate(random.permutation(len(heads)).tolist())}
    drawn = sorted(rows, key=lambda row: order[row[:2]])[:count]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for place in random.permutation(len(drawn)).tolist():
        writer.writerow([_cell(value) for value in drawn[place]])
    # With a mark that tells spreadsheets the encoding.
    write_atomically(path, [buffer.getvalue().encode("utf-8-sig")])
    return len(drawn)


def read_votes(spans: HeadSpans, labels: Labels, path: str | Path) -> Int[np.ndarray, "layer head text"]:
    """A person's votes from such a file: 1, 0, or NO_VOTE where `associated` was left empty or a text is not in it.

    Raises TextsError where the file is none of these, a vote is neither 1 nor 0, nothing is filled in, or label
    or text are not the store's any more.
    """
    wanted = {tuple(map(int, row[:3])): row[3:5] for row in _rows(spans, labels)}
    votes = np.full((len(labels.layers), spans.indices.shape[1], LABELLED_TEXTS), NO_VOTE, np.int8)
    seen: set[tuple[int, ...]] = set()
    for line, row in _read(Path(path)):
        where = f"{path}, line {line}"
        try:
            place = tuple(int(row[name]) for name in COLUMNS[:3])
        except ValueError as error:
            raise TextsError(f"{where}: layer, head and number must be whole numbers; restore the line") from error
        if place not in wanted or tuple(_uncell(row[name]) for name in ("label", "text")) != wanted[place]:
            raise TextsError(
                f"{where}: this label and text are not the store's any more; write the spans again with --write"
            )
        if place in seen:
            raise TextsError(f"{where}: is there twice; keep one of the lines")
        seen.add(place)
        vote = row["associated"].strip().removesuffix(".0")
        if vote not in ("", "0", "1"):
            raise TextsError(
                f"{where}: associated is {vote[:40]!r}; write 1 where label and text belong together, else 0"
            )
        if vote:
            votes[labels.layers.index(place[0]), place[1], place[2] - 1] = int(vote)
    if (votes == NO_VOTE).all():
        raise TextsError(f"{path}: no vote is filled in; write 1 or 0 into the column associated")
    return votes


def _rows(spans: HeadSpans, labels: Labels) -> list[tuple[str, str, str, str, str, str]]:
    """Layer, head, number, label, text and an empty vote, of every text of every labelled head."""
    return [
        (str(layer), str(head), str(number), _one_line(label), _one_line(spans.pool.texts[text]), "")
        for kept, (layer, names) in enumerate(zip(labels.layers, labels.names, strict=True))
        for head, label in enumerate(names)
        if label is not None
        for number, text in enumerate(first_texts(spans, kept, head), start=1)
    ]


def _read(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise TextsError(f"{path}: cannot be read ({error.strerror}); give the file that --write made") from error
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: byte {error.start} is not UTF-8; save the file as CSV in UTF-8") from error
    # Spreadsheets of some countries write semicolons.
    delimiter = max(",;\t", key=content.split("\n", 1)[0].count)
    try:
        lines: Sequence[dict[str, str]] = list(csv.DictReader(io.StringIO(content), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise TextsError(f"{path}: is no CSV ({error}); give the file that --write made") from error
    for line, row in enumerate(lines, start=2):
        if any(row.get(name) is None for name in COLUMNS):
            raise TextsError(f"{path}, line {line}: wanted are the columns {', '.join(COLUMNS)}; restore them")
    return list(enumerate(lines, start=2))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(value: str) -> str:
    return f"'{value}" if value.startswith((*_FORMULA, "'")) else value


def _uncell(value: str) -> str:
    return _one_line(value.removeprefix("'"))
