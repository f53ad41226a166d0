"""The command `describe`: it only leads to its sub-commands."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.progress import ProgressPrinter
from headspan.cli.sub_commands import add_sub_commands

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
    command = section.add(
        "describe", _nothing, "headspan describe train run.zarr --language-model lm.gguf --out lm.trained", _DETAILS
    )
    add_sub_commands(command, "describe", _COMMANDS)


def _nothing(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    raise AssertionError("argparse asks for a sub-command")
