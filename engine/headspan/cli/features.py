"""The command `features`: it only leads to its sub-commands."""

from __future__ import annotations

import argparse

from headspan.cli.commands import Section
from headspan.cli.progress import ProgressPrinter
from headspan.cli.sub_commands import add_sub_commands

_COMMANDS = {
    "train": "learn a dictionary of sparse features from stores",
    "score": "say how much each feature belongs to images, texts, or both",
    "show": "show a run of scores, and name features by texts",
    "compare": "match the features of dictionaries, such as those of several seeds",
    "splice": "write images as few texts, a baseline of naming without training",
    "use": "edit, attack or probe with one class of features",
}
_DETAILS = (
    "Features are sparse, non-negative parts of image and text embeddings, or of what heads write. Scores say how much "
    "each of them belongs to images, to texts, or to both."
)


def add_features(section: Section) -> None:
    """Add `features` with its sub-commands."""
    command = section.add("features", _nothing, "headspan features train run.zarr --out run.features", _DETAILS)
    add_sub_commands(command, "features", _COMMANDS)


def _nothing(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    raise AssertionError("argparse asks for a sub-command")
