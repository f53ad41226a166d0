"""The flags that select some images of a store: `--keys`, `--words` and `--class`."""

from __future__ import annotations

import argparse

from headspan.cli.numbers import Whole
from headspan.cli.shared_flags import Flags
from headspan.errors import SettingsError
from headspan.events import Listener
from headspan.store.reader import Store
from headspan.store.selection import Selection


def selection_flags(command: argparse.ArgumentParser, title: str = "images") -> None:
    """Add the flags under a title. Images must pass all of those that are given."""
    group: Flags = command.add_argument_group(f"{title} (default: all)")
    group.add_argument("--keys", metavar="FILE", help="images whose keys are lines of this text file")
    group.add_argument(
        "--words", nargs="+", metavar="WORD", help="images whose caption has all of these words, in any case"
    )
    group.add_argument("--any-word", action="store_true", help="with --words: one of the words is enough")
    group.add_argument(
        "--class", nargs="+", type=Whole(-(2**63)), metavar="N", dest="classes", help="images of these classes"
    )


def selected(store: Store, flags: argparse.Namespace, on_progress: Listener) -> Selection | None:
    """The images that the flags select; None without such flags. Raises SettingsError as `Store.select` does."""
    if flags.any_word and flags.words is None:
        raise SettingsError("--any-word is given without --words; name the words too")
    if flags.keys is None and flags.words is None and flags.classes is None:
        return None
    return store.select(
        keys=flags.keys,
        words=flags.words,
        any_word=flags.any_word,
        classes=flags.classes,
        on_progress=on_progress,
    )
