"""Arguments that several commands have."""

from __future__ import annotations

import argparse
from pathlib import PurePath

from headspan.errors import SettingsError
from headspan.user_paths import file_to_write

_OTHER_PICTURES = (".gif", ".jpg", ".jpeg", ".webp", ".svg", ".pdf", ".bmp", ".tif", ".tiff")
# A parser, or a group of its arguments.
Flags = argparse._ActionsContainer


def store_argument(flags: Flags) -> None:
    """The store that a command reads."""
    flags.add_argument("store", help="the store, a folder such as run.zarr or s3://bucket/run.zarr")


def pipe_flag(flags: Flags) -> None:
    """`--allow-pipe`: without it, no command that is named as a shard is run."""
    flags.add_argument("--allow-pipe", action="store_true", default=None, help="run shards that are `pipe:` commands")


def shards_flag(flags: Flags) -> None:
    """`--shards`: where the shards of a store are now."""
    flags.add_argument(
        "--shards",
        nargs="+",
        default=[],
        metavar="SHARD",
        help="where the shards are now, if they have moved; name all of them",
    )


def refuse_picture(path: str | None) -> None:
    """Raise HeadspanError if no PNG can be written to the file after `--out`; called before any work is done."""
    if path is None:
        return
    file_to_write(path, "picture")
    ending = PurePath(path).suffix.lower()
    if ending in _OTHER_PICTURES:
        raise SettingsError(f"--out {path}: pictures are written as PNG, and not as {ending[1:]}; end the name in .png")


def comma_separated(text: str) -> list[str]:
    """The words or texts of a flag's value, which commas separate."""
    return [word.strip() for word in text.split(",") if word.strip()]


def weights_flag(flags: Flags) -> None:
    """`--weights`: where the weights of a store's model are now."""
    flags.add_argument(
        "--weights",
        metavar="PATH",
        help="where the model's weights are now, if they have moved: a file, a folder, or hf-hub:NAME to fetch them",
    )


def run_flag(flags: Flags) -> None:
    """`--run`: which results of a store are meant."""
    flags.add_argument(
        "--run",
        dest="run_name",
        metavar="NAME",
        help="name of the run (default: the text pool's name, or the only run in the store)",
    )


def overwrite_flag(flags: Flags, derived: str = "") -> None:
    """`--overwrite`: without it, no command replaces results."""
    kept = f"; {derived} made from it stay, marked as of an older run" if derived else ""
    flags.add_argument("--overwrite", action="store_true", help=f"replace the run{kept}")
