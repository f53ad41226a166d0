"""The sections of commands on the main help page, and the parser of each command.

A command's module is imported only for that command, so that `headspan --help` and small commands start at once.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from textwrap import fill
from typing import TYPE_CHECKING

from headspan.cli.flag_parser import Parser

if TYPE_CHECKING:
    from headspan.cli.progress import ProgressPrinter

_WIDTH = 78
# A command's function gets its flags and a listener; it returns the exit code.
Run = Callable[[argparse.Namespace, "ProgressPrinter"], int]


@contextmanager
def loading() -> Iterator[None]:
    """Collect no garbage while large libraries are imported, which takes a tenth of the time and finds none."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@dataclass(frozen=True, slots=True)
class Group:
    """Commands that one function of one module of this folder adds, with what each of them does."""

    # As `module.function`; the function gets the section.
    add: str
    texts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Section:
    """Commands under one title on the main help page, with one example and perhaps a note."""

    title: str
    example: str
    note: str
    texts: dict[str, str]
    parsers: dict[str, Parser]

    def add(self, name: str, run: Run, example: str, details: str = "") -> Parser:
        """Describe a command on its own page: its text on the main page, `details`, and the command line `example`.

        Returns its parser, which has no flags yet.
        """
        return described(self.parsers[name], self.texts[name], run, example, details)


def described(parser: Parser, text: str, run: Run, example: str, details: str = "") -> Parser:
    """Give the parser of a command, or of a sub-command, its page; returns the parser."""
    parser.description = fill(f"{text[0].upper()}{text[1:]}. {details}", _WIDTH)
    parser.epilog = f"example:\n  {example}"
    parser.set_defaults(run=run)
    return parser


class Commands:
    """All commands, in sections. If `only` is given, only the flags of the command of that name are added."""

    def __init__(self, parser: Parser, only: str | None = None) -> None:
        # The sections list the commands. argparse must not; it then leaves COMMAND out of the usage, which is set here.
        parser.usage = f"{parser.prog} [-h] [--version] COMMAND ..."
        self._subparsers = parser.add_subparsers(
            prog=parser.prog, required=True, metavar="COMMAND", help=argparse.SUPPRESS, parser_class=Parser
        )
        self._only = only
        self._sections: list[Section] = []

    def section(self, title: str, example: str, *groups: Group, note: str = "") -> None:
        """Begin a section. The page shows sections in the order of these calls, and `note` after the commands."""
        texts = {name: text for group in groups for name, text in group.texts.items()}
        kind = argparse.RawDescriptionHelpFormatter
        parsers = {name: self._subparsers.add_parser(name, formatter_class=kind) for name in texts}
        section = Section(title, example, note, texts, parsers)
        for group in groups:
            if self._only is None or self._only in group.texts:
                module, _, function = group.add.rpartition(".")
                getattr(import_module(f"headspan.cli.{module}"), function)(section)
        self._sections.append(section)

    @property
    def parsers(self) -> dict[str, Parser]:
        """The parser of every command, by the command's name."""
        return dict(self._subparsers.choices)

    def help_text(self) -> str:
        """The sections as text: a line for each command, then an example."""
        width = max(map(len, self.parsers))
        blocks = []
        for section in self._sections:
            rows = [f"  {name:<{width}}  {text}" for name, text in section.texts.items()]
            note = [f"  {section.note}"] if section.note else []
            blocks.append("\n".join([f"{section.title}:", *rows, *note, f"    $ {section.example}"]))
        return "\n\n".join(blocks)
