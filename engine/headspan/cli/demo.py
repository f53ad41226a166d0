"""The command `demo`."""

from __future__ import annotations

import argparse
import time

from headspan.cli.commands import Section
from headspan.cli.precompute import print_summary
from headspan.cli.progress import ProgressPrinter
from headspan.cli.terminal import say
from headspan.errors import percent
from headspan.world.checks import GroundTruth


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
    for line in _through_heads(result.truth):
        say(line)
    say(f"finished in {time.monotonic() - began:.0f} s")
    say(f"open {result.report} in a browser, or run headspan explore {result.summary.path}")
    return 0


def _through_heads(truth: GroundTruth) -> list[str]:
    """One line each for maps, contrasts and neighbours through the heads of a concept, chance last."""
    contrasts = [each for each in truth.contrasts if each.right.heads is not None]
    return [
        f"{question}: {', '.join(f'{name} {percent(score)} ({percent(chance)})' for name, score, chance in scores)}"
        for question, scores in (
            (
                "pixel AUC of maps through a concept's heads (chance)",
                [(each.concept, each.auc.heads, each.auc.chance) for each in truth.text_maps if each.auc.heads],
            ),
            (
                "contrasts of two objects with the right signs (chance)",
                [(each.concept, each.right.heads or 0.0, each.right.chance) for each in contrasts],
            ),
            (
                "neighbours with the same value (chance)",
                [(each.concept, each.through_heads, each.chance) for each in truth.neighbours],
            ),
        )
        if scores
    ]
