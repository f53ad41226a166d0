"""The sections of commands on the main help page, and the parser of each command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from textwrap import fill

from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter

_WIDTH = 78
# A command's function gets its flags and a listener; it returns the exit code.
Run = Callable[[argparse.Namespace, ProgressPrinter], int]


@dataclass
class Section:
    """A group of commands on the main help page, with one example."""

    title: str
    example: str
    note: str
    subparsers: argparse._SubParsersAction[Parser]
    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, name: str, run: Run, text: str, example: str, details: str = "") -> Parser:
        """Add a command.

        `text` says what it does, on the main help page too; its own page adds `details` and the command line `example`.
        """
        parser = self.subparsers.add_parser(
            name,
            description=fill(f"{text[0].upper()}{text[1:]}. {details}", _WIDTH),
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.set_defaults(run=run)
        self.lines.append((name, text))
        return parser


class Commands:
    """All commands, in sections."""

    def __init__(self, parser: Parser) -> None:
        # The sections list the commands. argparse must not; it then leaves COMMAND out of the usage, which is set here.
        parser.usage = f"{parser.prog} [-h] [--version] COMMAND ..."
        self._subparsers = parser.add_subparsers(
            prog=parser.prog, required=True, metavar="COMMAND", help=argparse.SUPPRESS, parser_class=Parser
        )
        self._sections: list[Section] = []

    def section(self, title: str, example: str, note: str = "") -> Section:
        """Begin a section. The page shows sections in the order of these calls, and `note` after the commands."""
        section = Section(title, example, note, self._subparsers)
        self._sections.append(section)
        return section

    @property
    def parsers(self) -> dict[str, Parser]:
        """The parser of every command, by the command's name."""
        return dict(self._subparsers.choices)

    def help_text(self) -> str:
        """The sections as text: a line for each command, then an example."""
        width = max(map(len, self.parsers))
        blocks = []
        for section in self._sections:
            rows = [f"  {name:<{width}}  {text}" for name, text in section.lines]
            note = [f"  {section.note}"] if section.note else []
            blocks.append("\n".join([f"{section.title}:", *rows, *note, f"    $ {section.example}"]))
        return "\n\n".join(blocks)
