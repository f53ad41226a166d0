"""The command `features`: it only leads to its sub-commands, whose modules are imported when they are used."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import Any

from headspan.cli.commands import Section
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter

# A sub-command NAME is added by the function `add_NAME` of the module `features_NAME`, which gets its parser and text.
_COMMANDS = {
    "train": "learn a dictionary of sparse features from stores",
    "score": "say how much each feature belongs to images, texts, or both",
    "show": "show a run of scores, and name features by texts",
    "use": "edit, attack or probe with one class of features",
}
_DETAILS = (
    "Features are sparse, non-negative parts of image and text embeddings, or of what heads write. Scores say how much "
    "each of them belongs to images, to texts, or to both."
)


class _Later(Parser):
    """The parser of a sub-command; its flags are added when it is first used or shown."""

    fill: Callable[[], None] | None = None

    def filled(self) -> None:
        """Add the flags, once."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        self.filled()
        return super().format_help()


def add_features(section: Section) -> None:
    """Add `features` with its sub-commands."""
    command = section.add("features", _nothing, "headspan features train run.zarr --out run.features", _DETAILS)
    kind = argparse.RawDescriptionHelpFormatter
    inner = command.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=_Later)
    for name, text in _COMMANDS.items():
        parser = inner.add_parser(name, help=text, formatter_class=kind)
        assert isinstance(parser, _Later)
        parser.fill = _filling(name, parser, text)


def _filling(name: str, parser: Parser, text: str) -> Callable[[], None]:
    def fill() -> None:
        getattr(import_module(f"headspan.cli.features_{name}"), f"add_{name}")(parser, text)

    return fill


def _nothing(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    raise AssertionError("argparse asks for a sub-command")
