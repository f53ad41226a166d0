"""The entry of the command line: parse the flags, run one command, and end with its exit code.

Errors are one sentence on standard error with exit code 2. An interrupted command says how to continue; its exit code
is 130, or 143 after SIGTERM. `verify` and `repair` exit with 1 if they find a problem, `precompute` if units were
quarantined or no image could be used.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Sequence
from importlib.metadata import version
from types import FrameType

from headspan.cli.analyse import add_report, add_textspan
from headspan.cli.commands import Commands
from headspan.cli.demo import add_demo
from headspan.cli.flag_parser import Parser
from headspan.cli.inspect import add_inspect
from headspan.cli.labels import add_labels, add_pool
from headspan.cli.precompute import add_precompute
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import conclude, prepare, tell
from headspan.cli.votes import add_compare, add_votes
from headspan.errors import HeadspanError


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; commands end as after Ctrl-C, but with another exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    prepare()
    try:
        parser, _ = build_parser()
        return _run(parser.parse_args(arguments))
    finally:
        conclude()


def _run(flags: argparse.Namespace) -> int:
    progress = ProgressPrinter()
    # Python allows signal handlers in the main thread only.
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if in_main_thread else None
    try:
        return int(flags.run(flags, progress))
    except HeadspanError as error:
        progress.close()
        tell(f"headspan: {error}")
        return 2
    except KeyboardInterrupt as error:
        progress.close()
        kept = f"; {flags.kept} are kept; run the same command to continue" if "kept" in flags else ""
        terminated = isinstance(error, Terminated)
        tell(f"headspan: {'terminated' if terminated else 'interrupted'}{kept}")
        return 143 if terminated else 130
    finally:
        progress.close()
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def build_parser() -> tuple[Parser, Commands]:
    """The parser of the command line, and its commands in sections."""
    parser = Parser(
        prog="headspan",
        epilog="`headspan COMMAND --help` explains a command's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", help="print the version and exit", version=f"headspan {version('headspan')}"
    )
    commands = Commands(parser)
    add_precompute(commands.section("precompute", "headspan precompute 'data/{0000..0127}.tar' --out run.zarr"))
    add_inspect(commands.section("inspect", "headspan verify run.zarr"))
    analyse = commands.section("analyse", "headspan textspan run.zarr --texts-per-head 60")
    add_textspan(analyse)
    add_labels(analyse)
    add_compare(analyse)
    add_report(analyse)
    language_models = commands.section(
        "language models",
        "headspan ccs run.zarr --judge gpt-4o --dry-run",
        "`label --llm MODEL` and `ccs --judge MODEL` ask language models too.",
    )
    add_pool(language_models)
    add_votes(language_models)
    add_demo(commands.section("demo", "headspan demo --out headspan-demo"))
    parser.description = f"Find out what each attention head of a CLIP image encoder does.\n\n{commands.help_text()}"
    return parser, commands
