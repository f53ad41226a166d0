"""The command `features use`: it leads to `bias`, `attack` and `edit`, and holds what these share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from headspan.cli.chance_flags import chance_flags
from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter
from headspan.cli.saving import saved_or_not, tell_unsaved
from headspan.cli.shared_flags import Flags, comma_separated, overwrite_flag, store_argument, weights_flag
from headspan.cli.tables import print_table
from headspan.cli.terminal import say, tell
from headspan.errors import SettingsError
from headspan.features.saved import read_scores
from headspan.features.scores.result import CLASSES, FeatureScores
from headspan.features.uses.in_words import in_words
from headspan.features.uses.saved import read_use
from headspan.features.uses.use import Use
from headspan.store.reader import Store
from headspan.tasks.attribute_task import TEMPLATE, attribute_task
from headspan.tasks.task import Task
from headspan.tasks.task_file import read_task

if TYPE_CHECKING:
    from headspan.features.training.dictionary import Dictionary

# Each is added by the function `add_NAME` of the module `features_use_NAME`.
_USES = {
    "bias": "read an attribute from images without one class of features",
    "attack": "attack the pixels of images that are classified by one class of features",
    "edit": "give images one class of the features of other images or texts",
}
_DETAILS = (
    "Each use stands beside its control: as many random features of equal energy. Classes of features are those of a "
    "run of `features score`. Nothing is saved without --run."
)


def add_use(parser: Parser, text: str) -> None:
    """Describe `features use`, and add its commands."""
    described(parser, text, _nothing, "headspan features use bias run.zarr --attribute colour", _DETAILS)
    inner = parser.add_subparsers(title="uses", required=True, metavar="USE", parser_class=Parser)
    kind = argparse.RawDescriptionHelpFormatter
    for name, what in _USES.items():
        own = inner.add_parser(name, help=what, formatter_class=kind)
        getattr(import_module(f"headspan.cli.features_use_{name}"), f"add_{name}")(own, what)


def dictionary_flags(parser: Parser, residual: str) -> None:
    """The store, the run of scores, the dictionary, and what happens to what it does not explain."""
    store_argument(parser)
    group: Flags = parser.add_argument_group("features")
    group.add_argument(
        "--scores", metavar="RUN", help="the run of `features score` that gives classes (default: the only one)"
    )
    group.add_argument(
        "--dictionary", metavar="FOLDER", help="where the dictionary is now (default: where the run says)"
    )
    group.add_argument(
        "--residual",
        choices=("kept", "dropped"),
        default=residual,
        help=f"what becomes of what the dictionary does not explain (default: {residual})",
    )


def result_flags(parser: Parser, asked: str) -> None:
    """Where the result is kept; `asked` names the flags without which a saved one is shown."""
    group: Flags = parser.add_argument_group("result")
    group.add_argument(
        "--run",
        dest="run_name",
        metavar="NAME",
        help=f"save the result in the store as uses/NAME; without {asked}, show the saved result of that name",
    )
    overwrite_flag(group)
    export_flags(parser)


def classes_flag(flags: Flags, name: str, what: str) -> None:
    """A flag that names classes of features; it may be repeated."""
    flags.add_argument(name, action="append", choices=tuple(CLASSES), metavar="CLASS", help=what)


def attribute_flags(flags: Flags) -> None:
    """`--task`, or `--attribute` with its prompts: the classes that images are told apart by."""
    flags.add_argument("--task", metavar="TASK", help="a task of metric accuracy or worst_group, as in prune")
    flags.add_argument(
        "--attribute",
        metavar="KEY",
        help="instead of a task: the values under this key of the metadata, or this path of keys, as in objects.colour",
    )
    flags.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help=f"with --attribute: a prompt with {{c}} for the value; may be repeated (default: '{TEMPLATE}')",
    )
    flags.add_argument("--by", metavar="KEYS", help="with --attribute: also by these keys of the metadata, as in a,b")


def chance_of_features(flags: Flags, draws: int, samples: int | None, seeded: str = "draws and samples") -> None:
    """`--draws`, `--samples`, `--seed` and `--weights`."""
    chance_flags(flags, "sets of random features", seeded, draws, samples)
    weights_flag(flags)


def opened(flags: argparse.Namespace) -> tuple[Store, Dictionary, FeatureScores]:
    """The store, the dictionary and its scores."""
    store = Store(flags.store)
    scores = read_scores(store, flags.scores)
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.features.training.dictionary import open_dictionary

    return store, open_dictionary(flags.dictionary or scores.dictionary), scores


def task_of(flags: argparse.Namespace, store: Store) -> Task:
    """The task that `--task` or `--attribute` names. Raises SettingsError unless one of them is given."""
    if (flags.task is None) == (flags.attribute is None):
        raise SettingsError("--task and --attribute both say what images are told apart by; give one of them")
    if flags.attribute is None:
        if flags.template or flags.by:
            raise SettingsError("--template and --by go with --attribute; a task has its own prompts and groups")
        return read_task(flags.task)
    by = comma_separated(flags.by) if flags.by else ()
    return attribute_task(store, flags.attribute, flags.template or (TEMPLATE,), by)


def asks_for_saved(flags: argparse.Namespace) -> bool:
    """Whether `--run` names a result, and no task is given that would make a new one."""
    return flags.run_name is not None and flags.task is None and flags.attribute is None


def show_saved(
    flags: argparse.Namespace, progress: ProgressPrinter, kind: type[Use] | tuple[type[Use], ...], command: str
) -> int:
    """Print and export the saved result that `--run` names; `kind` is what the command gives."""
    found = read_use(Store(flags.store), flags.run_name)
    if not isinstance(found, kind):
        raise SettingsError(
            f"--run {flags.run_name}: is a saved result of features use {found.use}, not of {command}; show it with "
            f"headspan features use {found.use}"
        )
    return _shown(flags, progress, found)


def show_made(flags: argparse.Namespace, progress: ProgressPrinter, make: Callable[[], Use]) -> int:
    """Make a result, print and export it, and say where it was saved if `--run` names it."""
    found, unsaved = saved_or_not(make)
    _shown(flags, progress, found)
    tell_unsaved(unsaved)
    if unsaved is None and flags.run_name is not None:
        tell(f"saved as uses/{flags.run_name}")
    return 0


def _shown(flags: argparse.Namespace, progress: ProgressPrinter, found: Use) -> int:
    progress.close()
    export(flags, found)
    if only_export(flags):
        return 0
    words = in_words(found)
    for table in words.tables:
        if table.title:
            say(table.title)
        print_table(table.rows)
    for note in words.notes:
        say(note)
    for remark in words.remarks:
        say(f"note: {remark}")
    if found.older is not None:
        say(f"note: the result is of an older {found.older}; run the command again with --overwrite")
    return 0


def _nothing(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    raise AssertionError("argparse asks for a use")
