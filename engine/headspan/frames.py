"""Results as tables: a pandas frame on request, an HTML table in a notebook, a CSV, JSON or Parquet file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headspan.errors import HeadspanError, StoreError, counted
from headspan.io.files import write_atomically
from headspan.user_paths import file_to_write

if TYPE_CHECKING:
    import pandas as pd

# Rows that a notebook shows of a longer table.
_SHOWN_ROWS = 20


class Tabular:
    """A result that is a table. Subclasses define `_columns` and a `__repr__` of one line."""

    __slots__ = ()

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        """Every column of the frame, by name. None is a missing value."""
        raise NotImplementedError

    def _shown_columns(self) -> Mapping[str, Sequence[Any]]:
        """The columns that a notebook shows; those of the frame unless a subclass summarises them."""
        return self._columns()

    def to_frame(self) -> pd.DataFrame:
        """The result as a pandas frame, one row for each item. Raises HeadspanError if pandas is not installed."""
        try:
            import pandas as pd
        except ImportError as error:
            raise HeadspanError(
                "to_frame needs pandas, which is not installed; pip install 'headspan[pandas]'"
            ) from error
        return pd.DataFrame(dict(self._columns()))

    def to_csv(self, path: str | Path) -> None:
        """Write the table as CSV in UTF-8, replacing an earlier file; a missing value is an empty cell.

        Raises StoreError if the file cannot be written.
        """
        write_result(path, encoded(self.as_csv()))

    def to_json(self, path: str | Path) -> None:
        """Write the table as a JSON list with an object for each row; a missing value is null. Raises as `to_csv`."""
        write_result(path, encoded(self.as_json()))

    def to_parquet(self, path: str | Path) -> None:
        """Write the table as Parquet; a missing value is null. Raises as `to_csv`."""
        # Imported here, because it takes longer than most commands.
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {name: [_known(value) for value in values] for name, values in self._columns().items()}
        buffer = io.BytesIO()
        pq.write_table(pa.table(columns), buffer)
        write_result(path, buffer.getvalue())

    def as_csv(self) -> str:
        """The table as the text of a CSV file."""
        columns = self._columns()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_csv_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
        return text.getvalue()

    def as_json(self) -> str:
        """The table as the text of a JSON file, a line for each row."""
        columns = self._columns()
        rows = zip(*(map(_known, values) for values in columns.values()), strict=True)
        lines = (json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows)
        return "[" + ",\n ".join(lines) + "]\n"

    def _repr_html_(self) -> str:
        columns = self._shown_columns()
        rows = list(zip(*columns.values(), strict=True))
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:_SHOWN_ROWS])
        hidden = len(rows) - _SHOWN_ROWS
        more = f"<p>{counted(hidden, 'more row')}</p>" if hidden > 0 else ""
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def write_result(path: str | Path, data: bytes, what: str = "table") -> None:
    """Write the file of a result, replacing an earlier one; `what` names it in the error.

    Raises StoreError if the file cannot be written; no folder is made for it.
    """
    path = file_to_write(path, what)
    # Through a link, which stays a link.
    target = Path(os.path.realpath(path))
    try:
        if path.exists() and not target.is_file():
            # A pipe or a device, such as /dev/null, is written to, never replaced.
            with path.open("ab") as file:
                file.write(data)
            return
        write_atomically(target, [data])
    except (StoreError, OSError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        why = getattr(cause, "strerror", None) or error
        raise StoreError(f"{path}: the {what} cannot be written there ({why}); name another file") from error


def encoded(text: str) -> bytes:
    """`text` in UTF-8; halves of surrogate pairs, which names of files may contain, as backslash escapes."""
    return text.encode(errors="backslashreplace")


def _known(value: Any) -> Any:
    """None for a value that is not a number, and text that every encoding accepts."""
    if isinstance(value, str):
        return encoded(value).decode()
    return None if value != value else value


def _csv_cell(value: Any) -> Any:
    known = _known(value)
    return str(known).lower() if isinstance(known, bool) else known


def _cell(value: Any) -> str:
    shown = "–" if value is None or value != value else f"{value:.3f}" if isinstance(value, float) else str(value)
    return f"<td>{escape(shown)}</td>"
