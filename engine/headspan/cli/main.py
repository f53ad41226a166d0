"""The entry of the command line: parse the flags, run one command, and end with its exit code.

Errors are one sentence on standard error with exit code 2. An interrupted command says how to continue; its exit code
is 130, or 143 after SIGTERM. `verify` and `repair` exit with 1 if they find a problem, `precompute` if units were
quarantined or no image could be used.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from headspan.cli.commands import Commands, Group
from headspan.cli.flag_parser import Parser
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import conclude, prepare, say, tell
from headspan.errors import HeadspanError, SettingsError


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; commands end as after Ctrl-C, but with another exit code."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    prepare()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        parser, _ = build_parser(_command_in(arguments))
        return _run(parser.parse_args(arguments))
    except SettingsError as error:
        # A flag's value that is out of range.
        tell(f"headspan: {error}")
        return 2
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


def build_parser(only: str | None = None) -> tuple[Parser, Commands]:
    """The parser of the command line, and its commands in sections.

    If `only` is given, the other commands than that one have no flags.
    """
    parser = Parser(
        prog="headspan",
        epilog="`headspan COMMAND --help` explains a command's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = Commands(parser, only)
    commands.section(
        "precompute",
        "headspan precompute 'data/{0000..0127}.tar' --out run.zarr",
        Group("precompute.add_precompute", {"precompute": "stream shards of images through an encoder into a store"}),
        Group("frames.add_frames", {"frames": "write frames of videos as shards of images"}),
    )
    commands.section(
        "inspect",
        "headspan verify run.zarr",
        Group(
            "inspect.add_inspect",
            {
                "models": "list open_clip's models, and which of them headspan supports",
                "info": "show what a store holds",
                "verify": "check a store's files, numbers and source tars",
                "repair": "compute damaged or quarantined units again",
            },
        ),
        Group("runs.add_runs", {"runs": "list the results of analyses in a store, or remove some"}),
        Group("export.add_export", {"export": "write a store as Parquet, NumPy, safetensors or CSV files"}),
    )
    commands.section(
        "analyse",
        "headspan textspan run.zarr --texts-per-head 60",
        Group("analyse.add_textspan", {"textspan": "describe every head by texts (TEXTSPAN)"}),
        Group(
            "labels.add_labels",
            {
                "label": "give every head one concept as its label",
                "ccs": "count how many texts of a head match its label (CCS)",
            },
        ),
        Group("votes.add_compare", {"compare": "show the scores of several stores side by side"}),
        Group("analyse.add_report", {"report": "write the results as one HTML file"}),
    )
    commands.section(
        "explore",
        'headspan segment run.zarr --image 7 --text "a red car" --out map.png',
        Group("explore.add_explore", {"explore": "show stores as linked pages in a web browser"}),
        Group("nearest.add_nearest", {"nearest": "find the images nearest to an image or a text, as heads see them"}),
        Group(
            "maps.add_maps",
            {
                "segment": "map where heads see a text in images",
                "contrast": "map where heads see one text rather than another",
            },
        ),
        Group("heads.add_heads", {"heads": "rank the heads for a list of words, or by a text's score"}),
        Group("spectra.add_spectra", {"spectra": "describe what each head's weights can write, beside the images"}),
    )
    commands.section(
        "prune",
        "headspan prune run.zarr --task cifar10 --heads high --heads random",
        Group("prune.add_prune", {"prune": "measure what tasks lose without some heads, beside random heads"}),
        Group("concepts.add_concepts", {"concepts": "compare what concepts lose without the heads of one of them"}),
        Group("spurious.add_spurious", {"spurious": "score the worst group without the heads of a spurious cue"}),
        Group("reconstruct.add_reconstruct", {"reconstruct": "classify with heads replaced by what their texts span"}),
    )
    commands.section(
        "features",
        "headspan features train run.zarr --out run.features",
        Group("features.add_features", {"features": "learn sparse features of embeddings; score, show and use them"}),
    )
    commands.section(
        "describe",
        "headspan describe train run.zarr --language-model lm.gguf --out trained",
        Group("describe.add_describe", {"describe": "train a language model to describe classes as the model prefers"}),
    )
    commands.section(
        "language models",
        "headspan ccs run.zarr --judge gpt-4o --dry-run",
        Group("pool.add_pool", {"pool": "have a language model write a pool of texts"}),
        Group(
            "votes.add_votes",
            {"votes": "show every vote, with the raw answers", "agreement": "measure how far judges and people agree"},
        ),
        note="`label --llm`, `ccs --judge` and `describe inspect --judge` ask them too.",
    )
    commands.section(
        "demo",
        "headspan demo --out headspan-demo",
        Group("demo.add_demo", {"demo": "draw images and run every step on them, without a network"}),
    )
    parser.description = f"Find out what each attention head of a CLIP image encoder does.\n\n{commands.help_text()}"
    return parser, commands


class _Version(argparse.Action):
    """Print the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *ignored: object) -> None:
        from importlib.metadata import version

        say(f"headspan {version('headspan')}")
        parser.exit()


def _command_in(arguments: Sequence[str]) -> str:
    """The command that the arguments name; an empty string if they name none."""
    return next((word for word in arguments if not word.startswith("-")), "")
