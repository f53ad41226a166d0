"""Read a list of images: a .csv, .tsv or .jsonl file with a column of paths, or a .txt file with one path a line.

Paths are relative to the list's folder. Other columns may hold captions, classes and keys.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headspan.errors import SourceError
from headspan.io.retry import LOCAL_ERRORS, unreadable
from headspan.member_names import MemberNames
from headspan.shards.columns import Columns, choose
from headspan.shards.kinds import FOLDER, kind_of
from headspan.shards.urls import local_path

_PATH = "path"


@dataclass(frozen=True, slots=True)
class ImageList:
    """The rows of a list, by the names of its columns; paths are relative to the folder `root`."""

    root: str
    columns: Columns
    rows: list[dict[str, Any]]

    def paths(self) -> list[str]:
        """The paths of the images, as the list has them."""
        return [str(row[self.columns.image]) for row in self.rows]


def root_of(url: str) -> str:
    """The folder that the members of a list, or of a folder of images, are relative to."""
    return local_path(url) if kind_of(url) == FOLDER else str(Path(local_path(url)).absolute().parent)


def read_list(url: str, names: MemberNames) -> ImageList:
    """The list at `url`. Raises SourceError if it cannot be read, or if it is not clear which column has the paths."""
    path = Path(local_path(url))
    kind = path.suffix.lower()
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            if kind == ".txt":
                rows = [{_PATH: line} for line in (raw.strip("\r\n") for raw in lines) if line.strip()]
                found = [_PATH]
            elif kind == ".jsonl":
                rows = list(_objects(url, lines))
                found = list(dict.fromkeys(name for row in rows for name in row))
            else:
                table = csv.DictReader(lines, strict=True, delimiter="\t" if kind == ".tsv" else ",")
                rows = list(_complete(url, table))
                found = list(table.fieldnames or ())
    except csv.Error as error:
        raise SourceError(
            f"{url}: cannot be read ({error}); give a list in UTF-8 with a line of column names"
        ) from error
    except LOCAL_ERRORS as error:
        raise unreadable(url, error) from error
    kinds = {name: "text" if kind != ".jsonl" else _type_words(rows, name) for name in found}
    columns = choose(url, kinds, names, lambda name: _may_be_path(name, kinds), "paths")
    for number, row in enumerate(rows, start=1):
        value = row.get(columns.image)
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise SourceError(f"{url}: row {number} has no path in column {columns.image}; complete or remove it")
    return ImageList(root_of(url), columns, rows)


def part_stats(images: ImageList) -> Iterator[os.stat_result | None]:
    """What the file system says of each image; None for one that does not exist or is not a regular file."""
    for path in images.paths():
        yield file_stat(images.root, path)


def file_stat(root: str, path: str) -> os.stat_result | None:
    """What the file system says of a file in a folder; None if it does not exist or is not a regular file."""
    try:
        # A path object would take longer than the call; there may be a million files.
        found = os.stat(path if path.startswith("/") else f"{root}/{path}")  # noqa: PTH116
    except LOCAL_ERRORS:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _may_be_path(name: str, kinds: dict[str, str]) -> bool:
    return kinds[name] == "text"


def _objects(url: str, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{url}, line {number}: is not JSON ({error}); write one object a line") from error
        if not isinstance(found, dict):
            raise SourceError(f"{url}, line {number}: is not a JSON object; write one object a line")
        yield found


def _complete(url: str, table: csv.DictReader[str]) -> Iterator[dict[str, Any]]:
    for row in table:
        if None in row or None in row.values():
            raise SourceError(
                f"{url}, line {table.line_num}: not as many values as columns; put quotes around values with separators"
            )
        yield dict(row)


def _type_words(rows: list[dict[str, Any]], name: str) -> str:
    kinds = {type(row[name]).__name__ for row in rows if row.get(name) is not None}
    return "text" if kinds == {"str"} else " or ".join(sorted(kinds)) or "null"
