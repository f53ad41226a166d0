"""Groups of sub-commands, such as `features train`, whose modules are imported when they are used."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from headspan.cli.flag_parser import Parser


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


def add_sub_commands(
    command: argparse.ArgumentParser, group: str, commands: Mapping[str, str], required: bool = True
) -> None:
    """Add sub-commands with their descriptions to the command `group`.

    The function `add_NAME` of the module `cli/GROUP_NAME.py` adds the flags of NAME to its parser; it gets the parser
    and the description.
    """
    kind = argparse.RawDescriptionHelpFormatter
    inner = command.add_subparsers(title="commands", required=required, metavar="COMMAND", parser_class=_Later)
    for name, text in commands.items():
        parser = inner.add_parser(name, help=text, formatter_class=kind)
        assert isinstance(parser, _Later)
        parser.fill = _filling(group, name, parser, text)


def _filling(group: str, name: str, parser: Parser, text: str) -> Callable[[], None]:
    def fill() -> None:
        getattr(import_module(f"headspan.cli.{group}_{name}"), f"add_{name}")(parser, text)

    return fill
