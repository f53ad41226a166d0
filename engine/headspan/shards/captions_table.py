"""Read a table of captions for a folder of images: a CSV file with the columns `file` and `caption`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from headspan.errors import SourceError


def read_captions(path: Path, images: Sequence[str]) -> dict[str, str]:
    """The captions in the CSV file `path` by image; `images` are all paths, relative to the folder.

    Raises SourceError if the file cannot be read, or if it names a file that is no image of the folder, or one twice.
    """
    known = set(images)
    texts: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            if missing := {"file", "caption"} - set(table.fieldnames or ()):
                raise SourceError(
                    f"{path}: no column {' nor '.join(sorted(missing))}; begin the file with the line file,caption"
                )
            for row in table:
                file, where = PurePosixPath(row["file"] or "").as_posix(), f"{path}, line {table.line_num}"
                if row["caption"] is None or None in row:
                    raise SourceError(f"{where}: not as many values as columns; put quotes around commas")
                if file not in known:
                    raise SourceError(
                        f"{where}: {file} is not an image of the folder; give paths relative to the folder"
                    )
                if file in texts:
                    raise SourceError(f"{where}: {file} has a caption already; keep one line an image")
                texts[file] = row["caption"]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read ({error}); give a CSV file in UTF-8") from error
    return texts
