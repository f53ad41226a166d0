"""The command `features compare`: whether dictionaries of other seeds or settings found the same features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from headspan.cli.commands import described
from headspan.cli.exports import export, export_flags, only_export
from headspan.cli.flag_parser import Parser
from headspan.cli.numbers import FROM_0
from headspan.cli.progress import ProgressPrinter
from headspan.cli.tables import print_table
from headspan.cli.terminal import say
from headspan.errors import counted, percent

if TYPE_CHECKING:
    from headspan.features.compared import ComparedDictionaries

_DETAILS = (
    "Features of every two dictionaries are matched one to one, by the assignment with the largest sum of cosines of "
    "their directions. Chance is the same for random directions. Dictionaries differ in seed (`features train --seed`) "
    "or in other settings, and are of one space."
)


def add_compare(parser: Parser, text: str) -> None:
    """Describe `features compare`, and add its flags."""
    command = described(parser, text, _compare, "headspan features compare run.features other.features", _DETAILS)
    command.add_argument("dictionaries", nargs="+", metavar="FOLDER", help="two or more dictionaries of one space")
    command.add_argument("--seed", type=FROM_0, default=0, metavar="N", help="seed of the random directions (0)")
    export_flags(command)


def _compare(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    alone = only_export(flags)
    # Imported here, since it takes torch a second to load, and wrong flags are refused before.
    from headspan.features.compared import compare_dictionaries

    found = compare_dictionaries(flags.dictionaries, flags.seed)
    progress.close()
    export(flags, found)
    if not alone:
        _print(found)
    return 0


def _print(found: ComparedDictionaries) -> None:
    print_table(
        [
            ("dictionary", "learner", "features", "mean cosine", "matched at 0.7"),
            *(
                (
                    name,
                    learner,
                    f"{len(cosines):,}",
                    f"{cosines.mean():.3f}",
                    percent((cosines >= found.shared_from).mean()),
                )
                for name, learner, cosines in zip(found.folders, found.learners, found.stability.cosines, strict=True)
            ),
        ]
    )
    stable = found.stability
    say(
        f"over {counted(len(found.folders) * (len(found.folders) - 1) // 2, 'pair')} of dictionaries: mean matched "
        f"cosine {stable.mean:.3f}, {percent(stable.shared)} of features shared (cosine of at least "
        f"{found.shared_from}); random directions {stable.random:.3f}"
    )
