"""The command `export`."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.numbers import FROM_0
from headspan.cli.progress import ProgressPrinter
from headspan.cli.selection_flags import selected, selection_flags
from headspan.cli.shared_flags import comma_separated, shards_flag, store_argument
from headspan.cli.terminal import say
from headspan.errors import SettingsError
from headspan.explore.atlas.export import NEIGHBOURS, NEIGHBOURS_UP_TO, export_atlas, open_command
from headspan.store.export.export import DEFAULT_ARRAYS, FORMATS, export, in_words
from headspan.store.reader import Store

# Flags that only a map of images has.
_ATLAS_ONLY = ("no_pictures", "neighbours", "run_name", "shards", "keys", "words", "any_word", "classes")


def add_export(section: Section) -> None:
    """Add `export`."""
    command = section.add(
        "export",
        _export,
        "headspan export run.zarr --to run.parquet --arrays heads --head L22.H13",
        "Parquet has a row for each image, with its sample and a column for each head, such as heads_L22_H13. npy is a "
        "folder of files that NumPy maps into memory, with export.json, which names their axes. safetensors holds the "
        "model's matrices. csv is a folder of tables: samples, shards and notes. With --atlas, the file is a map of "
        "images for embedding-atlas.",
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
    atlas = command.add_argument_group("map for embedding-atlas")
    atlas.add_argument(
        "--atlas",
        action="store_true",
        help="write positions, pictures, captions and neighbours, of the head after --head or else of the embedding",
    )
    atlas.add_argument("--no-pictures", action="store_true", help="leave the pictures out")
    atlas.add_argument(
        "--neighbours",
        type=FROM_0,
        metavar="N",
        help=f"nearest images of each image, 0 for none; compares every pair of images (default: {NEIGHBOURS}, or none "
        f"above {NEIGHBOURS_UP_TO:,} images)",
    )
    atlas.add_argument(
        "--run",
        dest="run_name",
        metavar="NAME",
        help="the run whose texts or labels are written (default: the only run)",
    )
    shards_flag(atlas)
    selection_flags(command, "images of the map")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier export")


def _export(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    store = Store(flags.store, include_failed=flags.include_failed)
    if flags.atlas:
        return _atlas(store, flags, progress)
    for name in _ATLAS_ONLY:
        value = getattr(flags, name)
        if value is not None and value is not False and value != []:
            flag = {"run_name": "run", "classes": "class"}.get(name, name.replace("_", "-"))
            raise SettingsError(f"--{flag} belongs to a map of images: add --atlas, or leave it out")
    if flags.layers and flags.heads:
        raise SettingsError("--layers and --head both choose heads; give one of them")
    heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer) if flags.heads else None
    arrays = None if flags.arrays is None else comma_separated(flags.arrays)
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


def _atlas(store: Store, flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    """Write a map of images."""
    for name in ("format", "arrays", "layers", "include_failed"):
        if getattr(flags, name):
            raise SettingsError(f"--{name.replace('_', '-')} and --atlas: a map has columns of its own; leave one out")
    heads = chosen_heads(flags.heads, store.layers, store.heads_per_layer) if flags.heads else []
    if len(heads) > 1:
        raise SettingsError("--atlas is a map of one head: name one with --head, or none for the embedding")
    done = export_atlas(
        store,
        flags.to,
        heads[0] if heads else None,
        images=selected(store, flags, progress),
        pictures=not flags.no_pictures,
        neighbours=flags.neighbours,
        run=flags.run_name,
        shards=flags.shards,
        overwrite=flags.overwrite,
        on_progress=progress,
    )
    progress.close()
    say(in_words(done))
    say(f"open it with {open_command(done.path)}")
    return 0
