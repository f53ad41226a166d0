"""Vote sheets: CSV files of texts and labels in which a person votes, in a spreadsheet or an editor.

Whole heads are drawn, so that scores of heads can be compared too. Their texts are shuffled, so that each is judged
on its own. The sheet does not show the judges' votes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Int

from headspan.concepts.consistency import NO_VOTE
from headspan.concepts.labels import LABELLED_TEXTS, Labels
from headspan.concepts.sheets import new_sheet, one_line, read_sheet, uncell, write_sheet
from headspan.errors import TextsError
from headspan.spans.result import HeadSpans, place_of

COLUMNS = ("layer", "head", "number", "label", "text", "associated")


def write_vote_sheet(spans: HeadSpans, labels: Labels, path: str | Path, count: int = 100, seed: int = 0) -> int:
    """Write up to `count` texts with their heads' labels to `path`; returns how many were written.

    The person fills the column `associated` with 1 or 0. `seed` decides which heads are drawn. Raises TextsError if no
    head is labelled, StoreError if `path` cannot be written, and SettingsError if `path` exists, since it may contain
    votes.
    """
    path = new_sheet(path, count)
    rows = _rows(spans, labels)
    if not rows:
        raise TextsError(f"labels of run {labels.run!r}: no head is labelled, so there is nothing to judge")
    random = np.random.default_rng(seed)
    heads = list(dict.fromkeys(row[:2] for row in rows))
    order = {heads[place]: rank for rank, place in enumerate(random.permutation(len(heads)).tolist())}
    drawn = sorted(rows, key=lambda row: order[row[:2]])[:count]
    write_sheet(path, COLUMNS, (drawn[place] for place in random.permutation(len(drawn)).tolist()))
    return len(drawn)


def read_vote_sheet(spans: HeadSpans, labels: Labels, path: str | Path) -> Int[np.ndarray, "layer head text"]:
    """Read a person's votes from a filled vote sheet: 1, 0, or NO_VOTE for texts without a vote.

    The axes are those of `Votes.cast`. Raises TextsError if the file is not a vote sheet, if a vote is neither 1 nor 0,
    if no vote is filled in, or if a label or text differs from the store's.
    """
    wanted = {tuple(map(int, row[:3])): row[3:5] for row in _rows(spans, labels)}
    votes = np.full((len(labels.layers), spans.indices.shape[1], LABELLED_TEXTS), NO_VOTE, np.int8)
    seen: set[tuple[int, ...]] = set()
    for line, row in read_sheet(Path(path), COLUMNS):
        where = f"{path}, line {line}"
        try:
            place = tuple(int(row[name]) for name in COLUMNS[:3])
        except ValueError as error:
            raise TextsError(f"{where}: layer, head and number must be whole numbers; restore the line") from error
        if place not in wanted or tuple(uncell(row[name]) for name in ("label", "text")) != wanted[place]:
            raise TextsError(f"{where}: its label or text differs from the store's; write a new sheet with --write")
        if place in seen:
            raise TextsError(f"{where}: repeats the text of another line; keep one of them")
        seen.add(place)
        vote = row["associated"].strip().removesuffix(".0")
        if vote not in ("", "0", "1"):
            raise TextsError(f"{where}: associated is {vote[:40]!r}; write 1 if the text matches the label, else 0")
        if vote:
            layer, head, number = place
            votes[(*place_of(labels.layers, votes.shape[1], layer, head), number - 1)] = int(vote)
    if (votes == NO_VOTE).all():
        raise TextsError(f"{path}: no vote is filled in; write 1 or 0 into the column associated")
    return votes


def _rows(spans: HeadSpans, labels: Labels) -> list[tuple[str, str, str, str, str, str]]:
    """Layer, head, number, label, text and an empty vote, for every text of every labelled head."""
    return [
        (str(layer), str(head), str(number), one_line(label), one_line(text), "")
        for layer, names in zip(labels.layers, labels.names, strict=True)
        for head, label in enumerate(names)
        if label is not None
        for number, text in enumerate(spans.texts(layer, head, LABELLED_TEXTS), start=1)
    ]
