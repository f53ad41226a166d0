"""The flags that every command with a table has: `--csv`, `--json` and `--parquet`."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headspan.cli.shared_flags import Flags
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError
from headspan.frames import Tabular
from headspan.store.head_space import Head
from headspan.store.magnitudes import Magnitudes
from headspan.user_paths import file_to_write

_FORMATS = ("csv", "json", "parquet")


@dataclass(frozen=True, slots=True)
class Table(Tabular):
    """A table of columns."""

    columns: Mapping[str, Sequence[Any]]

    def _columns(self) -> Mapping[str, Sequence[Any]]:
        return self.columns

    @classmethod
    def of_heads(
        cls, table: Tabular, heads: Collection[Head], magnitudes: Magnitudes, whole: Magnitudes | None = None
    ) -> Table:
        """The rows of `table` that are about `heads`, with the magnitude of each head.

        `whole` are the magnitudes over the whole store, if `magnitudes` are over a selection of images.
        """
        columns = dict(table._columns())
        shares = [magnitudes.of(*head) for head in zip(columns["layer"], columns["head"], strict=True)]
        columns["variance_share"] = [variance for variance, _ in shares]
        columns["squared_length_share"] = [length for _, length in shares]
        if whole is not None:
            columns["store_variance_share"] = [
                whole.of(*head)[0] for head in zip(columns["layer"], columns["head"], strict=True)
            ]
        of_rows = zip(columns["layer"], columns["head"], strict=True)
        chosen = [number for number, head in enumerate(of_rows) if head in heads]
        return cls({name: [values[number] for number in chosen] for name, values in columns.items()})


def export_flags(command: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group: Flags = command.add_argument_group("table as a file")
    for name, title in (("csv", "CSV"), ("json", "JSON")):
        group.add_argument(f"--{name}", metavar="FILE", help=f"write the table as {title}; - prints it instead")
    group.add_argument("--parquet", metavar="FILE", help="write the table as Parquet")


def only_export(flags: argparse.Namespace) -> bool:
    """Whether standard output is for an exported table alone.

    Commands call this before they do any work. Raises SettingsError if two tables would go there, or one of bytes; and
    StoreError if there is no folder for a file.
    """
    if flags.parquet == "-":
        raise SettingsError("--parquet -: Parquet cannot be printed; name a file, or print CSV with --csv -")
    if flags.csv == flags.json == "-":
        raise SettingsError("--csv - and --json -: only one table fits on standard output; name a file for the other")
    for name in _FORMATS:
        path = getattr(flags, name)
        if path is not None and path != "-":
            file_to_write(path, "table")
    return "-" in (flags.csv, flags.json)


def export(flags: argparse.Namespace, table: Tabular) -> bool:
    """Write `table` as the flags say; return whether standard output is for it alone.

    Raises as `only_export`, and StoreError if a file cannot be written.
    """
    alone = only_export(flags)
    for name in _FORMATS:
        path = getattr(flags, name)
        if path == "-":
            text = table.as_csv() if name == "csv" else table.as_json()
            for line in text.removesuffix("\n").split("\n"):
                say(line)
        elif path is not None:
            getattr(table, f"to_{name}")(path)
            tell(f"table written to {path}")
    return alone
