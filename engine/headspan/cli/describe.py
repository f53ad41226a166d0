"""The command `describe`: it leads to its sub-commands, or runs a demo of all of them."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.describe_demo import OUT, describe_demo
from headspan.cli.progress import ProgressPrinter
from headspan.cli.sub_commands import add_sub_commands
from headspan.errors import SettingsError

_COMMANDS = {
    "train": "train a language model to write what the vision-language model prefers",
    "write": "write descriptions of classes, with their rewards",
    "show": "show descriptions with their quality, beside the untrained model's",
    "inspect": "judge what descriptions teach: nothing, something visual, or something else",
}
_DETAILS = (
    "A language model learns by reinforcement to describe classes so that the store's model finds the descriptions "
    "similar to the images. What it then writes shows what the model, or a single head, associates with each class."
)


def add_describe(section: Section) -> None:
    """Add `describe` with its sub-commands."""
    command = section.add("describe", _demo, "headspan describe --demo", _DETAILS)
    command.add_argument("--demo", action="store_true", help="run all of it with the included models, in minutes")
    command.add_argument("--out", metavar="FOLDER", help=f"folder of the demo (default: {OUT})")
    add_sub_commands(command, "describe", _COMMANDS, required=False)


def _demo(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    if not flags.demo:
        raise SettingsError(
            f"describe needs a command ({', '.join(_COMMANDS)}) or --demo; headspan describe --help describes them"
        )
    return describe_demo(OUT if flags.out is None else flags.out, progress)
