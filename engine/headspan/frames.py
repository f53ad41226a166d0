"""Results as tables: a pandas frame on request, an HTML table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from headspan.errors import HeadspanError, counted

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

    def _repr_html_(self) -> str:
        columns = self._shown_columns()
        rows = list(zip(*columns.values(), strict=True))
        head = "".join(f"<th>{escape(name)}</th>" for name in columns)
        body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows[:_SHOWN_ROWS])
        hidden = len(rows) - _SHOWN_ROWS
        more = f"<p>{counted(hidden, 'more row')}</p>" if hidden > 0 else ""
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _cell(value: Any) -> str:
    shown = "–" if value is None or value != value else f"{value:.3f}" if isinstance(value, float) else str(value)
    return f"<td>{escape(shown)}</td>"
