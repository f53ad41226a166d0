"""The flags of commands that ask a store about an image, a text, or some of its heads."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from headspan.cli.head_flag import chosen_heads, head_flag
from headspan.cli.shared_flags import Flags, shards_flag, weights_flag
from headspan.concepts.labelled_heads import heads_of
from headspan.errors import SettingsError
from headspan.store.head_space import Head
from headspan.store.reader import Store
from headspan.user_paths import expand_user


def image_flag(flags: Flags) -> None:
    """`--image`; `chosen_image` says which image it names."""
    flags.add_argument(
        "--image",
        metavar="IMAGE",
        help="an image: its index in the store, an image file, or the key of an image of the store",
    )


def text_flag(flags: Flags) -> None:
    """`--text`."""
    flags.add_argument(
        "--text", type=given_text, metavar="TEXT", help="a text; it is cut if it is longer than the model's context"
    )


def given_text(text: str) -> str:
    """The type of a flag whose value is a text: an empty one is refused, since a model gives it a vector too."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a text")
    return text


def heads_flags(flags: Flags, verb: str, run_flag: str = "--run") -> None:
    """`--head`, `--label` and the run of labels; `verb` is what the command does with the heads.

    Commands whose `--run` means something else give the run of labels another flag.
    """
    head_flag(flags, verb)
    flags.add_argument("--label", metavar="NAME", help=f"{verb} the heads that have this label only")
    flags.add_argument(
        run_flag,
        dest="label_run",
        metavar="RUN",
        help="the run of labels that --label is about (default: the only one)",
    )


def source_flags(flags: Flags) -> None:
    """`--weights` and `--shards`: where the model and the images are now."""
    weights_flag(flags)
    shards_flag(flags)


def chosen_heads_of(store: Store, flags: argparse.Namespace, run_flag: str = "--run") -> list[Head] | None:
    """The heads that `--head` or `--label` name, in the order of layers and heads; None if neither is given.

    Raises SettingsError if both are given, if a run of labels is given without `--label`, or if a head is not stored;
    and the errors of `heads_of`.
    """
    if flags.heads and flags.label is not None:
        raise SettingsError("--head and --label both choose heads; give one of them")
    if flags.label_run is not None and flags.label is None:
        raise SettingsError(f"{run_flag} {flags.label_run}: says which labels --label is about; give --label too")
    if flags.label is not None:
        return heads_of(store, flags.label, flags.label_run)
    return chosen_heads(flags.heads, store.layers, store.heads_per_layer) if flags.heads else None


def chosen_image(store: Store, given: str) -> int | Path:
    """The index of the image in the store that `--image` names, or the path of the file.

    Digits, without zeros before them, are an index if the store has so many images. Anything else is a file if there
    is one, and then a key. Raises SettingsError if it is none of them, or if the image with that key could not be used.
    """
    if re.fullmatch(r"0|[1-9][0-9]*", given) and int(given) < store.images:
        return int(given)
    path = expand_user(given)
    try:
        if path.is_file():
            return path
    except (OSError, ValueError):
        # A key may be longer than a file's name can be.
        pass
    try:
        return store.image_of_key(given)
    except SettingsError as error:
        indices = f"0 to {store.images - 1}" if store.images else "of which there are none"
        raise SettingsError(f"--image {given}: is neither an index ({indices}) nor a file, and {error}") from error
