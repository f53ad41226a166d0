"""The command `export`."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.progress import ProgressPrinter
from headspan.cli.shared_flags import store_argument
from headspan.cli.terminal import say
from headspan.errors import SettingsError
from headspan.store.export.export import DEFAULT_ARRAYS, FORMATS, export, in_words
from headspan.store.reader import Store


def add_export(section: Section) -> None:
    """Add `export`."""
    command = section.add(
        "export",
        _export,
        "headspan export run.zarr --to run.parquet --arrays heads --head L22.H13",
        "Parquet has a row for each image, with its sample and a column for each head, such as heads_L22_H13. npy is a "
        "folder of files that NumPy maps into memory, with export.json, which names their axes. safetensors holds the "
        "model's matrices. csv is a folder of tables: samples, shards and notes.",
    )
    store_argument(command)
    command.add_argument(
        "--to",
        required=True,
        metavar="PATH",
        help="the file or folder to write; a name that ends in .parquet or .safetensors tells the format",
    )
    command.add_argument("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)} (default: by the name after --to)")
    chosen = command.add_argument_group("what is exported")
    chosen.add_argument(
        "--arrays",
        metavar="NAMES",
        help="arrays of the store, such as heads,embedding,norm,mlps, and contributions: those of the heads in joint "
        f"space (default: {','.join(DEFAULT_ARRAYS)})",
    )
    chosen.add_argument("--layers", metavar="LAYERS", help="heads of these layers only, as in last4 or 8-11")
    head_flag(chosen, "export")
    chosen.add_argument(
        "--include-failed", action="store_true", help="keep the rows of images that could not be used, as NaN"
    )
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def _export(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store, include_failed=flags.include_failed)
    if flags.layers and flags.heads:
        raise SettingsError("--layers and --head both choose heads; give one of them")
    heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer) if flags.heads else None
    arrays = None if flags.arrays is None else [name.strip() for name in flags.arrays.split(",") if name.strip()]
    done = export(
        store,
        flags.to,
        format=flags.format,
        arrays=arrays,
        layers=flags.layers,
        heads=heads,
        overwrite=flags.overwrite,
        on_progress=progress,
    )
    progress.close()
    say(in_words(done))
    return 0
