"""The command `demo`."""

from __future__ import annotations

import argparse
import time

from headspan.cli.commands import Section
from headspan.cli.precompute import print_summary
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import say
from headspan.errors import percent


def add_demo(section: Section) -> None:
    """Add `demo`."""
    demo = section.add(
        "demo",
        _demo,
        "headspan demo --out headspan-demo",
    )
    demo.add_argument("--out", metavar="FOLDER", default="headspan-demo", help="folder to write (default: %(default)s)")


def _demo(flags: argparse.Namespace, progress: ProgressPrinter) -> int:
    # Needs torch.
    from headspan.demo import run

    began = time.monotonic()
    result = run(flags.out, progress)
    progress.close()
    print_summary(result.summary)
    named = ", ".join(
        f"{factor.replace('_', ' ')} {percent(each.share)}" for factor, each in result.truth.zero_shot.items()
    )
    say(f"zero-shot accuracy: {named}")
    say(f"finished in {time.monotonic() - began:.0f} s; open {result.report} in a browser")
    return 0
